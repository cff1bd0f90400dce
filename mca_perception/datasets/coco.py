"""Reader of the ARMBench segmentation layout, COCO files with their images.

``<data>/<subset>/{images/, train.json, val.json, test.json}``. Categories are read by name.
Annotations that cannot be used are skipped and counted by reason, never silently.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import image_size, read_rgb
from mca_perception.datasets.shapes import (
    Segmentation,
    ShapeError,
    parse_segmentation,
    rasterise_segmentation,
)
from mca_perception.errors import DatasetError, InvalidImageError
from mca_perception.geometry import MAX_PIXELS

__all__ = ["SUBSETS", "Annotation", "CocoSplit", "ImageRecord", "rasterise"]

SUBSETS = ("mix-object-tote", "zoomed-out-tote-transfer-set", "same-object-transfer-set")
MAX_JSON_BYTES = 4_000_000_000
MAX_ANNOTATIONS_PER_IMAGE = 10_000
BOX_TOLERANCE = 2.0
"""Pixels; outlines may run through pixel centres."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """One annotated object.

    Attributes:
        id: annotation id, unique in the split.
        category: name of the category.
        segmentation: polygons, clipped to the image, or a COCO RLE.
        box: xyxy in pixels, as the file states it where that fits the segmentation.
        area: square pixels.
        is_crowd: a region to ignore in evaluation.
        instance_id: pixel value in a synthesised mask image, when given.
        product_id: product, when given.
        visible_fraction: visible pixels over those of the whole silhouette, when given.
    """

    id: int
    category: str
    segmentation: Segmentation
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool = False
    instance_id: int | None = None
    product_id: str | None = None
    visible_fraction: float | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image of a split with its annotations."""

    image_id: int
    path: Path
    height: int
    width: int
    annotations: tuple[Annotation, ...]

    def read(self) -> NDArray[np.uint8]:
        """Decode the image.

        Returns:
            uint8 ``[height, width, 3]`` RGB as stored: annotations refer to pixels before EXIF rotation.

        Raises:
            InvalidImageError: the file cannot be decoded.
        """
        return read_rgb(self.path)


@dataclass(frozen=True)
class CocoSplit:
    """One split of one subset.

    Attributes:
        source: the annotation file.
        records: usable images in file order.
        categories: category id by name.
        skipped: number of images or annotations left out, by reason.
        corrected: number of annotations kept that are not plain polygons inside the image: clipped ones, RLE masks
            and crowd regions; by kind.
        sha256: hash of the annotation file.
    """

    source: Path
    records: tuple[ImageRecord, ...]
    categories: dict[str, int]
    skipped: Counter[str] = field(default_factory=Counter)
    corrected: Counter[str] = field(default_factory=Counter)
    sha256: str = ""

    @classmethod
    def open(
        cls,
        data: str | os.PathLike[str],
        *,
        subset: str = "mix-object-tote",
        split: str = "test",
        limit: int | None = None,
    ) -> CocoSplit:
        """Read a split.

        Args:
            data: folder that holds the subsets; or one subset's own folder.
            subset: one of :data:`SUBSETS`, or any other folder name.
            split: ``train``, ``val`` or ``test``.
            limit: stop after this many usable images.

        Raises:
            DatasetError: the annotation file is missing, not COCO JSON, too large, or has no usable image.
        """
        root = Path(data)
        folder = root / subset if (root / subset).is_dir() else root
        source = folder / f"{split}.json"
        if not source.is_file():
            raise DatasetError(
                f"{source} is missing; give the folder that holds {subset}/{split}.json and {subset}/images/"
            )
        document, digest = _read_document(source)
        reader = _Reader(document, folder / "images", source)
        records = tuple(reader.records(limit))
        if not records:
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in reader.skipped.items()) or "it is empty"
            )
            raise DatasetError(f"{source} has no usable image ({reasons}); check the images folder beside it")
        return cls(source, records, reader.category_ids(), reader.skipped, reader.corrected, digest)

    def to_coco(self, records: tuple[ImageRecord, ...] | None = None) -> dict[str, Any]:
        """Return the split, or some of its records, as a clean COCO document for pycocotools."""
        chosen = self.records if records is None else records
        return {
            "info": {},
            "images": [
                {"id": r.image_id, "file_name": r.path.name, "height": r.height, "width": r.width}
                for r in chosen
            ],
            "annotations": [
                {
                    "id": a.id,
                    "image_id": r.image_id,
                    "category_id": self.categories[a.category],
                    "segmentation": a.segmentation,
                    "bbox": [a.box[0], a.box[1], a.box[2] - a.box[0], a.box[3] - a.box[1]],
                    "area": a.area,
                    "iscrowd": int(a.is_crowd),
                }
                for r in chosen
                for a in r.annotations
            ],
            "categories": [{"id": number, "name": name} for name, number in self.categories.items()],
        }


def rasterise(annotation: Annotation, height: int, width: int) -> NDArray[np.bool_]:
    """Draw an annotation of an image of that size.

    Returns:
        bool ``[height, width]``.

    Raises:
        DatasetError: the size exceeds the limit, or the annotation is an RLE of another size.
    """
    return rasterise_segmentation(annotation.segmentation, height, width)


class _UnusableError(Exception):
    """An image or annotation that is left out; the message is the reason."""


class _Reader:
    """Turns a COCO document into records, counting what it leaves out."""

    def __init__(self, document: dict[str, Any], images: Path, source: Path) -> None:
        self._document = document
        self._images = images
        self._source = source
        self._seen_images: set[int] = set()
        self._seen_annotations: set[int] = set()
        self.skipped: Counter[str] = Counter()
        self.corrected: Counter[str] = Counter()
        self._names = self._category_names()

    def category_ids(self) -> dict[str, int]:
        return {name: number for number, name in self._names.items()}

    def records(self, limit: int | None) -> Iterator[ImageRecord]:
        by_image: dict[int | None, list[dict[str, Any]]] = {}
        for annotation in self._list("annotations"):
            by_image.setdefault(_whole(annotation.get("image_id")), []).append(annotation)
        images = self._list("images")
        known = {_whole(image.get("id")) for image in images} - {None}
        strays = sum(len(entries) for image_id, entries in by_image.items() if image_id not in known)
        if strays:
            self.skipped["annotation of an unknown image"] += strays
        for image in images:
            if limit is not None and len(self._seen_images) >= limit:
                return
            image_id = _whole(image.get("id"))
            entries = by_image.get(image_id, [])
            try:
                record = self._record(image, entries)
            except _UnusableError as reason:
                self.skipped[str(reason)] += 1
                if image_id is not None and image_id not in self._seen_images and entries:
                    self.skipped["annotation of an image left out"] += len(entries)
            else:
                self._seen_images.add(record.image_id)
                yield record

    def _category_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for category in self._list("categories"):
            number, name = _whole(category.get("id")), category.get("name")
            if number is None or not isinstance(name, str):
                self.skipped["category entry incomplete"] += 1
            elif names.setdefault(number, name) != name:
                raise DatasetError(
                    f"{self._source} gives category id {number} to both {names[number]!r} and {name!r}; "
                    "correct its categories"
                )
        return names

    def _list(self, key: str) -> list[dict[str, Any]]:
        entries = self._document.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DatasetError(f"{self._source} has no list of {key!r}; it must be a COCO instances file")
        return entries

    def _record(self, image: dict[str, Any], annotations: list[dict[str, Any]]) -> ImageRecord:
        image_id, height, width = (_whole(image.get(key)) for key in ("id", "height", "width"))
        name = image.get("file_name")
        if image_id is None or height is None or width is None or not isinstance(name, str):
            raise _UnusableError("image entry incomplete")
        if image_id in self._seen_images:
            raise _UnusableError("duplicate image id")
        if not _is_confined(name):
            raise _UnusableError("image path outside the folder")
        if not 0 < height * width <= MAX_PIXELS:
            raise _UnusableError("image larger than the limit")
        path = self._images / name
        if not path.is_file():
            raise _UnusableError("image file missing")
        try:
            actual = image_size(path)
        except InvalidImageError:
            raise _UnusableError("image not readable") from None
        if actual != (height, width):
            raise _UnusableError("image size differs from the annotation file")
        return ImageRecord(
            image_id, path, height, width, tuple(self._annotations(annotations, height, width))
        )

    def _annotations(self, entries: list[dict[str, Any]], height: int, width: int) -> Iterator[Annotation]:
        if len(entries) > MAX_ANNOTATIONS_PER_IMAGE:
            self.skipped["annotation above the limit per image"] += len(entries) - MAX_ANNOTATIONS_PER_IMAGE
        for entry in entries[:MAX_ANNOTATIONS_PER_IMAGE]:
            try:
                yield self._annotation(entry, height, width)
            except (_UnusableError, ShapeError) as reason:
                self.skipped[str(reason)] += 1

    def _annotation(self, entry: dict[str, Any], height: int, width: int) -> Annotation:
        annotation_id = _whole(entry.get("id"))
        if annotation_id is None:
            raise _UnusableError("annotation without id")
        if annotation_id in self._seen_annotations:
            raise _UnusableError("duplicate annotation id")
        category_id = _whole(entry.get("category_id"))
        category = None if category_id is None else self._names.get(category_id)
        if category is None:
            raise _UnusableError("annotation of unknown category")
        shape = parse_segmentation(entry.get("segmentation"), height, width)
        if shape.clipped:
            self.corrected["polygon clipped to the image"] += 1
        if isinstance(shape.segmentation, dict):
            self.corrected["RLE mask"] += 1
        is_crowd = bool(entry.get("iscrowd", 0))
        if is_crowd:
            self.corrected["crowd region, to be ignored"] += 1
        self._seen_annotations.add(annotation_id)
        product = entry.get("product_id")
        return Annotation(
            id=annotation_id,
            category=category,
            segmentation=shape.segmentation,
            box=_stated_box(entry.get("bbox"), shape.box, height, width),
            area=shape.area,
            is_crowd=is_crowd,
            instance_id=_whole(entry.get("instance_id")),
            product_id=None if product is None else str(product),
            visible_fraction=_fraction(entry.get("visible_fraction")),
        )


def _read_document(source: Path) -> tuple[dict[str, Any], str]:
    if source.stat().st_size > MAX_JSON_BYTES:
        raise DatasetError(f"{source} is larger than {MAX_JSON_BYTES:,} bytes; split it first")
    content = source.read_bytes()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is not JSON ({error}); download or write it again") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{source} must hold a JSON object; it must be a COCO instances file")
    return document, hashlib.sha256(content).hexdigest()


def _whole(value: Any) -> int | None:
    """Return a JSON number as an integer, or ``None`` when it is not a whole number."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fraction(value: Any) -> float | None:
    """Return a JSON number between 0 and 1, or ``None`` when it is anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 1 else None


def _stated_box(stated: Any, outline: Box, height: int, width: int) -> Box:
    """Return the file's own box as xyxy, as other evaluations use it, or the outline's where that does not fit.

    It fits when it lies in the image and holds the outline.
    """
    try:
        x, y, w, h = (float(value) for value in stated)
    except (TypeError, ValueError, OverflowError):
        return outline
    room = (
        x,
        y,
        width - x - w,
        height - y - h,
        outline[0] - x,
        outline[1] - y,
        x + w - outline[2],
        y + h - outline[3],
    )
    return (x, y, x + w, y + h) if all(gap >= -BOX_TOLERANCE for gap in room) else outline


def _is_confined(name: str) -> bool:
    """Whether a file name from an annotation file stays inside the images folder."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", "\0"}
