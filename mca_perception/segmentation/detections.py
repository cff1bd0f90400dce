"""From the instances of one image to entries of a COCO results file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.segmentation.postprocess import MaskCandidates, to_objects

__all__ = ["Detection", "overlapping_detections", "published_detections"]

Detection = dict[str, Any]
"""An entry of a COCO results file with ``bbox`` and an RLE ``segmentation``."""


def overlapping_detections(
    candidates: MaskCandidates, image_id: int, label_names: Sequence[str], category_ids: Mapping[str, int]
) -> list[Detection]:
    """Give every candidate its whole mask, as COCO's average precision expects; masks may overlap."""
    height, width = candidates.letterbox.image_size
    detections = []
    windows = candidates.windows()
    for score, label, (y, x, values) in zip(candidates.scores, candidates.labels, windows, strict=True):
        inside = values > 0
        if not inside.any():
            continue
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        detections.append(
            {
                "image_id": image_id,
                "category_id": category_ids[label_names[int(label)]],
                "score": float(score),
                "bbox": [
                    x.start + int(columns[0]),
                    y.start + int(rows[0]),
                    int(columns[-1] - columns[0]) + 1,
                    int(rows[-1] - rows[0]) + 1,
                ],
                "segmentation": _window_rle(inside, y.start, x.start, height, width),
            }
        )
    return detections


def published_detections(
    candidates: MaskCandidates,
    score_threshold: float,
    image_id: int,
    label_names: tuple[str, ...],
    category_ids: Mapping[str, int],
) -> list[Detection]:
    """Detections as the pipeline publishes them: above the threshold, every pixel given to one object."""
    objects = to_objects(candidates.above(score_threshold), label_names)
    return objects.to_coco(image_id, category_ids)


def _window_rle(inside: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a mask given by its window; only the window's columns are scanned."""
    from pycocotools import mask as coco_mask

    strip = np.zeros((inside.shape[1], height), dtype=bool)  # column-major, as COCO counts
    strip[:, top : top + inside.shape[0]] = inside.T
    flat = strip.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False)) + left * height
    runs = np.diff(np.concatenate([[0], changes, [height * width]]))
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
