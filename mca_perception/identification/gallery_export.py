"""Write a gallery's content in formats that other programs read."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import Gallery

__all__ = ["export_gallery"]


def export_gallery(gallery: Gallery, folder: Path) -> int:
    """Write ``embeddings.npy``, float32 ``[R, D]``, and ``references.csv`` with one line for each of its rows.

    The columns are ``product_id``, ``position`` and ``image``; the latter is empty where the image is not known by its
    path. With paths in it, the list can be imported again.

    Args:
        gallery: what to write.
        folder: an existing folder.

    Returns:
        The number of references.

    Raises:
        GalleryError: a file cannot be written.
    """
    store = gallery.store
    array_part, list_part = folder / ".embeddings.npy.part", folder / ".references.csv.part"
    try:
        with store.reading() as connection:
            shape = (int(store.meta(connection)["references"]), store.dimension(connection) or 0)
            array = np.lib.format.open_memmap(array_part, "w+", np.float32, shape) if shape[0] else None
            with list_part.open("w", encoding="utf-8", newline="") as stream:
                lines = csv.writer(stream)
                lines.writerow(("product_id", "position", "image"))
                at = 0
                for product, rows in store.products(connection):
                    images = store.images(connection, [product])[product] or [""] * len(rows)
                    for position, image in enumerate(images):
                        lines.writerow((product, position, image if isinstance(image, str) else ""))
                    if array is not None:
                        array[at : at + len(rows)] = rows
                    at += len(rows)
        if array is None:
            np.save(array_part.open("wb"), np.zeros(shape, np.float32))
        else:
            array.flush()
        array_part.replace(folder / "embeddings.npy")
        list_part.replace(folder / "references.csv")
    except OSError as error:
        raise GalleryError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error
    return shape[0]
