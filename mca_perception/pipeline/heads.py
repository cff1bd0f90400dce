"""What a segmentation head's graph takes, and the candidates in what it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.manifest import SegmentationSpec
from mca_perception.geometry import Letterbox
from mca_perception.segmentation.cascade.postprocess import BoxCandidates
from mca_perception.segmentation.postprocess import Candidates, MaskCandidates, select_instances

__all__ = ["graph_inputs", "to_candidates"]


def graph_inputs(
    settings: SegmentationSpec,
    features: NDArray[np.float32],
    images: NDArray[np.float32],
    score_threshold: float,
) -> dict[str, NDArray[np.float32]]:
    """Inputs of the head's graph for one image.

    Args:
        settings: the head's.
        features: ``[1, 1 + T, D]`` output of the backbone.
        images: ``[1, 3, H, W]`` what the backbone saw.
        score_threshold: instances below it need not be found.
    """
    if settings.head == "edge":
        return {"features": features, "images": images}
    # The cascade's graph keeps scores above its threshold, the pipeline those that reach it.
    threshold = np.nextafter(np.float32(score_threshold), np.float32(-1))
    return {"features": features, "score_threshold": np.array([threshold], np.float32)}


def to_candidates(
    settings: SegmentationSpec,
    output: Mapping[str, NDArray[Any]],
    score_threshold: float,
    letterbox: Letterbox,
) -> MaskCandidates:
    """Candidates of one image, best first, without duplicates.

    Args:
        settings: the head's.
        output: its graph's outputs for :func:`graph_inputs` with the same threshold.
        score_threshold: instances below it are dropped.
        letterbox: the transform that made the network input.
    """
    if settings.head == "cascade":
        scores, labels, boxes, masks = (
            output[name][: settings.max_objects] for name in ("scores", "labels", "boxes", "masks")
        )
        return BoxCandidates(scores, labels, boxes, masks, letterbox)
    scores, labels, logits = output["scores"][0], output["labels"][0], output["mask_logits"][0]
    if settings.mask_threshold != 0.5:
        logits = logits - np.float32(math.log(settings.mask_threshold / (1 - settings.mask_threshold)))
    kept = select_instances(
        scores,
        labels,
        logits,
        score_threshold=score_threshold,
        nms_iou=settings.nms_iou,
        max_objects=settings.max_objects,
    )
    return Candidates(np.clip(scores[kept], 0, 1), labels[kept], logits[kept], letterbox)
