"""`Objects`: everything known about the objects of one image, as a struct of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Objects"]

_Array = NDArray[Any]
_PER_OBJECT_ARRAYS = (
    "boxes",
    "scores",
    "labels",
    "instance_ids",
    "track_ids",
    "embeddings",
    "product_scores",
    "product_confidences",
    "defects",
    "points3d",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Objects:
    """N objects of one image. Every per-object field has length N or is ``None``.

    Indexing with an integer, slice, boolean mask or integer array returns ``Objects`` again; the
    instance-mask image is shared, not copied. Invariants are checked on construction.

    Attributes:
        image_size: ``(height, width)`` of the original image in pixels.
        boxes: float32 ``[N, 4]`` xyxy in original image pixels; ``x2``, ``y2`` are exclusive edges.
        scores: float32 ``[N]``, detection confidence in [0, 1].
        labels: int64 ``[N]``, indices into ``label_names``.
        label_names: names of the classes.
        instance_mask: uint16 ``[H, W]``, 0 for background, else the instance id of the object at that pixel.
        instance_ids: uint16 ``[N]``, pixel value of each object: unique, not 0. Numbered 1..N when not given.
        track_ids: int64 ``[N]``, stable over frames.
        embeddings: float32 ``[N, D]``.
        product_ids: N tuples of product ids, best first; their lengths may differ. An empty one: none of the products
            searched is similar enough, or none was searched.
        product_scores: float32 ``[N, k]`` cosine similarities of the ``product_ids``, padded with NaN.
        product_confidences: float32 ``[N]`` probability that the first product is right, if it is among those searched;
            NaN where unknown.
        defects: float32 ``[N, 3]`` probabilities (nominal, multi-pick, package defect); NaN: not assessed.
        points3d: float32 ``[N, 3]`` metres in the camera's optical frame; NaN where unknown.
        timings_ms: milliseconds by pipeline stage.

    Raises:
        ValueError: a field breaks an invariant; the message names the field.

    Example:
        >>> objects = Objects.empty((480, 640), ("Object",))
        >>> len(objects), objects.boxes.shape
        (0, (0, 4))
    """

    image_size: tuple[int, int]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    instance_mask: NDArray[np.uint16] | None = None
    instance_ids: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    track_ids: NDArray[np.int64] | None = None
    embeddings: NDArray[np.float32] | None = None
    product_ids: list[tuple[str, ...]] | None = None
    product_scores: NDArray[np.float32] | None = None
    product_confidences: NDArray[np.float32] | None = None
    defects: NDArray[np.float32] | None = None
    points3d: NDArray[np.float32] | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.instance_ids) == 0:
            count = min(len(self.scores), np.iinfo(np.uint16).max)
            object.__setattr__(self, "instance_ids", np.arange(1, count + 1, dtype=np.uint16))
        _check_frame(self)
        _check_detections(self)
        _check_optional(self)
        _check_products(self)

    @classmethod
    def empty(cls, image_size: tuple[int, int], label_names: tuple[str, ...], **optional: Any) -> Objects:
        """No objects; ``optional`` may set further fields (an all-zero ``instance_mask``, ``timings_ms``)."""
        return cls(
            image_size=image_size,
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            label_names=label_names,
            **optional,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | _Array | list[int] | list[bool]) -> Objects:
        chosen = self._positions(index)
        selected: dict[str, Any] = {
            name: value[chosen] for name in _PER_OBJECT_ARRAYS if (value := getattr(self, name)) is not None
        }
        if self.product_ids is not None:
            selected["product_ids"] = [self.product_ids[i] for i in chosen]
        return replace(self, **selected)

    def __iter__(self) -> Iterator[Objects]:
        return (self[i] for i in range(len(self)))

    def _positions(self, index: int | slice | _Array | list[int] | list[bool]) -> NDArray[np.int64]:
        """Turn any supported index into an array of positions."""
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0 and index.dtype != bool:
                index = index.astype(np.int64)
        positions: NDArray[np.int64] = np.arange(len(self))[index]
        return positions

    def replace(self, **changes: Any) -> Objects:
        """Return a copy with some fields exchanged; checked like any other."""
        return replace(self, **changes)

    def mask(self, i: int) -> NDArray[np.bool_]:
        """Visible pixels of object ``i``.

        Returns:
            bool ``[H, W]``.

        Raises:
            ValueError: there is no ``instance_mask``.
        """
        if self.instance_mask is None:
            raise ValueError("instance_mask is None: these objects have boxes only")
        visible: NDArray[np.bool_] = self.instance_mask == self.instance_ids[i]
        return visible

    def areas(self) -> NDArray[np.int64]:
        """Visible pixels of each object, int64 ``[N]``; the box area where there is no ``instance_mask``."""
        if self.instance_mask is None:
            sides = np.clip(self.boxes[:, 2:] - self.boxes[:, :2], 0, None)
            return np.asarray(np.round(sides.prod(axis=1)), dtype=np.int64)
        counts = np.bincount(self.instance_mask.ravel(), minlength=int(self.instance_ids.max(initial=0)) + 1)
        areas: NDArray[np.int64] = counts[self.instance_ids].astype(np.int64)
        return areas

    def rle(self, i: int) -> dict[str, Any]:
        """Mask of object ``i`` as a compressed COCO RLE (``size``, ``counts``).

        Raises:
            ValueError: there is no ``instance_mask``.
        """
        from pycocotools import mask as coco_mask

        encoded = coco_mask.encode(np.asfortranarray(self.mask(i), dtype=np.uint8))
        return {"size": list(self.image_size), "counts": encoded["counts"].decode("ascii")}

    def to_coco(self, image_id: int, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Convert to entries of a COCO results file.

        Args:
            image_id: id of the image in the annotation file.
            category_ids: category id by label name; label index + 1 when not given.
        """
        entries = []
        for i in range(len(self)):
            label = int(self.labels[i])
            x1, y1, x2, y2 = (float(v) for v in self.boxes[i])
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[self.label_names[label]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[i]),
            }
            if self.instance_mask is not None:
                entry["segmentation"] = self.rle(i)
            entries.append(entry)
        return entries

    def to_rows(self) -> list[dict[str, Any]]:
        """Convert to flat rows for CSV files and tables; absent values are ``None``."""
        areas = self.areas()
        rows = []
        for i in range(len(self)):
            products = self.product_ids[i] if self.product_ids is not None else ()
            best = float(self.product_scores[i, 0]) if products and self.product_scores is not None else None
            rows.append(
                {
                    "id": int(self.instance_ids[i]),
                    "track_id": None if self.track_ids is None else int(self.track_ids[i]),
                    "label": self.label_names[int(self.labels[i])],
                    "score": float(self.scores[i]),
                    **dict(zip(("x1", "y1", "x2", "y2"), (float(v) for v in self.boxes[i]), strict=True)),
                    "area": int(areas[i]),
                    "product_id": products[0] if products else None,
                    "product_score": best,
                }
            )
        return rows


def _require(condition: bool | np.bool_, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_array(name: str, value: Any, dtype: type, shape: tuple[int | None, ...]) -> None:
    """Check type and shape; ``None`` in ``shape`` stands for any length."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a numpy array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype)}, got {value.dtype}")
    fits = value.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")


def _check_frame(objects: Objects) -> None:
    size = objects.image_size
    _require(
        len(size) == 2 and all(isinstance(side, (int, np.integer)) and side > 0 for side in size),
        f"image_size must be two positive integers (height, width), got {size!r}",
    )
    if objects.instance_mask is not None:
        _check_array("instance_mask", objects.instance_mask, np.uint16, tuple(size))


def _check_detections(objects: Objects) -> None:
    count = len(objects.scores)
    _check_array("scores", objects.scores, np.float32, (count,))
    _check_array("boxes", objects.boxes, np.float32, (count, 4))
    _check_array("labels", objects.labels, np.int64, (count,))
    _check_array("instance_ids", objects.instance_ids, np.uint16, (count,))
    _require(np.isfinite(objects.boxes).all(), "boxes must be finite")
    _require((objects.boxes[:, 2:] >= objects.boxes[:, :2]).all(), "boxes must satisfy x1 <= x2 and y1 <= y2")
    in_range = (objects.scores >= 0) & (objects.scores <= 1)
    _require(in_range.all(), "scores must lie in [0, 1]")
    known = (objects.labels >= 0) & (objects.labels < len(objects.label_names))
    _require(known.all(), f"labels must index label_names {objects.label_names}")
    _require((objects.instance_ids > 0).all(), "instance_ids must not be 0, which is the background")
    _require(len(np.unique(objects.instance_ids)) == count, "instance_ids must be unique")


def _check_optional(objects: Objects) -> None:
    count = len(objects)
    shapes: dict[str, tuple[type, tuple[int | None, ...]]] = {
        "track_ids": (np.int64, (count,)),
        "embeddings": (np.float32, (count, None)),
        "product_confidences": (np.float32, (count,)),
        "defects": (np.float32, (count, 3)),
        "points3d": (np.float32, (count, 3)),
    }
    for name, (dtype, shape) in shapes.items():
        value = getattr(objects, name)
        if value is not None:
            _check_array(name, value, dtype, shape)
    if objects.embeddings is not None:
        _require(np.isfinite(objects.embeddings).all(), "embeddings must be finite")
    for name, probabilities in (
        ("product_confidences", objects.product_confidences),
        ("defects", objects.defects),
    ):
        if probabilities is not None:
            known = probabilities[~np.isnan(probabilities)]
            _require(((known >= 0) & (known <= 1)).all(), f"{name} must be probabilities in [0, 1]")


def _check_products(objects: Objects) -> None:
    ids, scores = objects.product_ids, objects.product_scores
    _require((ids is None) == (scores is None), "product_ids and product_scores must be given together")
    if ids is None or scores is None:
        return
    _require(len(ids) == len(objects), f"product_ids must have {len(objects)} entries, got {len(ids)}")
    _check_array("product_scores", scores, np.float32, (len(objects), None))
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    filled = np.arange(scores.shape[1]) < lengths[:, None]
    _require(
        (lengths <= scores.shape[1]).all() and (np.isfinite(scores) == filled).all(),
        "product_scores must hold one finite score per product id, then NaN",
    )
