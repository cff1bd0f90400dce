"""A gallery from a folder of reference images, for the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mca_perception.datasets.images import find_images, read_rgb
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.identification.gallery import Gallery
from mca_perception.ros.engine import Engine

__all__ = ["REFERENCES", "build_gallery", "find_references"]

REFERENCES = "Reference_Images"
MAX_REFERENCES = 6


def find_references(source: Path) -> Path | None:
    """``Reference_Images`` in a data set's folder, for a source anywhere inside it."""
    folders = (source, *list(source.resolve().parents)[:3])
    return next((folder / REFERENCES for folder in folders if (folder / REFERENCES).is_dir()), None)


def build_gallery(
    model: Path,
    references: Path,
    target: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Embed ``<product>/<number>.jpg`` and write a new gallery; unreadable pictures are left out.

    Args:
        model: folder of the bundle.
        references: one folder per product.
        target: the gallery file; an old one is replaced.
        progress: called with products done and in all.

    Returns:
        Number of products.

    Raises:
        DatasetError: no product has a readable picture.
    """
    for leftover in target.parent.glob(f"{target.name}*"):
        leftover.unlink()
    engine = Engine(model)
    folders = sorted(folder for folder in references.iterdir() if folder.is_dir())
    fingerprint = engine.model.rpartition("@")[2]
    with Gallery.open(target, model=fingerprint) as gallery:
        for number, folder in enumerate(folders, 1):
            pictures = []
            for path in find_images(folder)[:MAX_REFERENCES]:
                try:
                    pictures.append(read_rgb(path))
                except InvalidImageError:
                    continue
            if pictures:
                gallery.add(folder.name, engine.pipeline.embed_references(pictures))
            progress(number, len(folders))
        count = len(gallery)
    if not count:
        raise DatasetError(
            f"{references} holds no readable reference image; give one folder of pictures per product"
        )
    return count
