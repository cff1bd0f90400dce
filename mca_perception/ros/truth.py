"""Annotated products of a data set in ARMBench's segmentation layout, to compare the nodes' answers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.coco import CocoSplit
from mca_perception.errors import SourceError
from mca_perception.ros.manifests import read_manifest
from mca_perception.ros.sources import find_images

__all__ = ["ProductScore", "Truth"]

Box = tuple[float, float, float, float]
LabelledBox = tuple[Box, str]

_SPLITS = ("train", "val", "test")
_MATCH_IOU = 0.5


class Truth:
    """Boxes and products by container. One with several images is left out: results do not name images."""

    def __init__(self, objects: Mapping[str, Sequence[LabelledBox]]) -> None:
        self._objects = dict(objects)

    @classmethod
    def read(cls, folder: str | Path) -> Truth | None:
        """Read the annotation files beside a folder of images.

        Returns:
            ``None`` when this is no folder of images, or there are no manifests or no annotations that name products.

        Raises:
            DatasetError: an annotation file or manifest cannot be read.
        """
        try:
            root = find_images(Path(folder))[0].parent.parent
        except SourceError:
            return None
        if not (root / "manifests").is_dir():
            return None
        objects: dict[str, list[LabelledBox]] = {}
        ambiguous: set[str] = set()
        for split in _SPLITS:
            if not (root / f"{split}.json").is_file():
                continue
            for record in CocoSplit.open(root, split=split).records:
                manifest = read_manifest(root / "manifests" / f"{record.path.stem}.json")
                key = manifest.container_id if manifest else ""
                if key in objects:
                    ambiguous.add(key)
                labelled = [(a.box, a.product_id) for a in record.annotations if a.product_id]
                if key and labelled:
                    objects[key] = labelled
        objects = {key: labelled for key, labelled in objects.items() if key not in ambiguous}
        return cls(objects) if objects else None

    def objects(self, container_id: str) -> Sequence[LabelledBox]:
        """Boxes (xyxy px) and products in the image of a container; empty when not known."""
        return self._objects.get(container_id, ())


@dataclass
class ProductScore:
    """How often the first product of a found object is the annotated one.

    An annotated object counts as found when a box of IoU 0.5 or more lies on it; each box is used once.
    """

    annotated: int = 0
    found: int = 0
    correct: int = 0

    def add(self, truth: Sequence[LabelledBox], found: Sequence[LabelledBox]) -> None:
        """Compare one frame."""
        self.annotated += len(truth)
        if not truth or not found:
            return
        overlap = _iou(np.array([box for box, _ in truth]), np.array([box for box, _ in found]))
        for _ in range(min(overlap.shape)):
            i, j = divmod(int(overlap.argmax()), overlap.shape[1])
            if overlap[i, j] < _MATCH_IOU:
                break
            self.found += 1
            self.correct += truth[i][1] == found[j][1]
            overlap[i, :] = overlap[:, j] = -1

    def summary(self) -> dict[str, Any]:
        """Counts and shares, ready for JSON."""
        return {
            "annotated_objects": self.annotated,
            "found_objects": self.found,
            "correct_products": self.correct,
            "found_share": round(self.found / self.annotated, 4) if self.annotated else None,
            "recall@1_of_found": round(self.correct / self.found, 4) if self.found else None,
        }


def _iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of boxes xyxy ``[N, 4]`` and ``[M, 4]`` as ``[N, M]``."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.clip(sides, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return np.asarray(common / np.maximum(union, 1e-9), dtype=np.float64)
