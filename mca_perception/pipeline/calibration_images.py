"""Images that ranges of int8 are found on, and what every graph of a model is given for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defects import read_defect_view
from mca_perception.datasets.images import IMAGE_SUFFIXES, read_rgb
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.engine_cache import file_digest
from mca_perception.deploy.session import Session, open_sessions
from mca_perception.deploy.sessions.base import Arrays
from mca_perception.errors import CalibrationError
from mca_perception.pipeline.inspection import DefectInspector
from mca_perception.pipeline.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import Progress, no_progress

__all__ = ["LIST_NAME", "CalibrationImages", "SampleStore", "choose_images", "record_samples"]

LIST_NAME = "calibration/images.json"
"""The list, as a file of the bundle."""

MAX_IMAGES = 2000
MAX_LIST_BYTES = 500_000_000
CROPS_PER_IMAGE = 4
"""Of the crops of one image, so many are looked at: they have much in common."""


@dataclass(frozen=True)
class CalibrationImages:
    """Images by path, with their hashes.

    Attributes:
        paths: the files.
        hashes: SHA-256 of every file.
    """

    paths: tuple[Path, ...]
    hashes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the files' hashes."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()

    def to_json(self) -> bytes:
        """The list for the bundle: files by their own name and hash, not by where they lie."""
        entries = [{"file_name": p.name, "sha256": h} for p, h in zip(self.paths, self.hashes, strict=True)]
        return (json.dumps({"images": entries, "sha256": self.digest}, indent=1) + "\n").encode()


def choose_images(sources: Sequence[str | os.PathLike[str]], count: int) -> CalibrationImages:
    """Choose images, as many from every source, evenly over their sorted names.

    Args:
        sources: folders, searched with their sub-folders; or COCO files, whose images lie in ``images`` beside them,
            so that one split alone is used.
        count: how many to take in all.

    Raises:
        CalibrationError: a source has no images or too few, or is no list of images.
    """
    if not len(sources) <= count <= MAX_IMAGES:
        raise CalibrationError(f"{count} calibration images asked for; give {len(sources)} to {MAX_IMAGES}")
    chosen: list[Path] = []
    for place, source in enumerate(map(Path, sources)):
        share = (count * (place + 1)) // len(sources) - (count * place) // len(sources)
        found = _listed(source) if source.is_file() else _found(source)
        if not found:
            raise CalibrationError(
                f"calibration source {source} holds no image; give one with at least {share}"
            )
        if len(found) < share:
            raise CalibrationError(
                f"calibration source {source} holds {len(found)} images, {share} are needed; add images or ask for "
                "fewer with --calibration-images"
            )
        chosen += [found[i * len(found) // share] for i in range(share)]
    return CalibrationImages(tuple(chosen), tuple(file_digest(path) for path in chosen))


class SampleStore:
    """Inputs of graphs on disk, so that memory does not grow with the number of images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: dict[str, int] = {}

    @property
    def graphs(self) -> tuple[str, ...]:
        """Graphs that there are samples of."""
        return tuple(self._counts)

    def add(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Keep one sample."""
        number = self._counts.get(graph, 0)
        np.savez(self._folder / f"{graph}-{number}.npz", **inputs)  # type: ignore[arg-type]  # stub wants allow_pickle
        self._counts[graph] = number + 1

    def samples(self, graph: str, limit: int | None = None) -> Iterator[Arrays]:
        """Samples of a graph in the order in which they came."""
        for number in range(min(self._counts.get(graph, 0), limit or MAX_IMAGES * 2)):
            with np.load(self._folder / f"{graph}-{number}.npz", allow_pickle=False) as stored:
                yield dict(stored)


def record_samples(
    bundle: ModelBundle, images: CalibrationImages, store: SampleStore, *, progress: Progress = no_progress
) -> None:
    """Run a model over images and keep what its graphs are given.

    Scenes, and crops of what is found in them. A model without a segmentation head inspects picks: images of defect
    data are cut out as their annotation says, four at once as views of one pick.
    """
    sessions = open_sessions(bundle, session="onnxruntime-cpu")
    recording = {name: _Recording(name, session, store) for name, session in sessions.items()}
    if bundle.manifest.segmentation is None and bundle.manifest.defects is not None:
        inspector = DefectInspector(bundle, recording)
        for start in progress(range(0, len(images.paths), CROPS_PER_IMAGE), "calibration"):
            part = images.paths[start : start + CROPS_PER_IMAGE]
            inspector.view_probabilities(np.stack([_cut_out(inspector, path) for path in part]))
        return
    pipeline = PerceptionPipeline.from_bundle(bundle.path, session=recording)
    for path in progress(images.paths, "calibration"):
        pipeline.perceive(read_rgb(path))


def _cut_out(inspector: DefectInspector, path: Path) -> NDArray[np.uint8]:
    """The crop of a defect image, of the whole image where it has no annotation beside it."""
    image = read_rgb(path)
    view = read_defect_view(path)
    return inspector.crop(image, None if view is None else view.mask(*image.shape[:2]))


class _Recording:
    """A session that keeps what it is given."""

    def __init__(self, name: str, session: Session, store: SampleStore) -> None:
        self._name, self._session, self._store = name, session, store

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        self._store.add(self._name, {name: array[:CROPS_PER_IMAGE] for name, array in inputs.items()})
        return self._session.run(inputs)


def _found(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CalibrationError(
            f"calibration source {folder} is neither a folder nor a COCO file; correct the path"
        )
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _listed(source: Path) -> list[Path]:
    """Images of a COCO file."""
    if source.stat().st_size > MAX_LIST_BYTES:
        raise CalibrationError(f"{source} is larger than {MAX_LIST_BYTES:,} bytes; give a smaller list")
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))["images"]
        names = [str(entry["file_name"]) for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise CalibrationError(
            f"{source} does not list images as a COCO file does ({type(error).__name__}: {error}); give a folder or "
            "such a file"
        ) from error
    paths = sorted(source.parent / "images" / name for name in names)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise CalibrationError(f"{source} lists {missing[0]}, which is missing; correct the list")
    return paths
