"""The service ``inspect_pick``: may this pick travel on?"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mca_perception_msgs.srv import InspectPick

from mca_perception.errors import BundleError, InvalidImageError
from mca_perception.ros.defect_messages import rule_for, to_assessment
from mca_perception.ros.engine import EngineSlot
from mca_perception.ros.pick_services import decode_views
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["MAX_CLIP_FRAMES", "MAX_VIEWS", "InspectionServices"]

MAX_VIEWS = 16
"""Independent views of a pick, and frames of a clip that are looked at."""

MAX_CLIP_FRAMES = 512


class InspectionServices:
    """``inspect_pick``.

    Args:
        thread: offers the service.
        engines: inspects.
        rate: the false-positive rate asked for at present; 0 for the strictest.
    """

    def __init__(self, thread: ServiceThread, engines: EngineSlot, *, rate: Callable[[], float]) -> None:
        self._engines = engines
        self._rate = rate
        thread.add(InspectPick, "inspect_pick", self._inspect)

    def _inspect(self, request: InspectPick.Request, response: InspectPick.Response) -> None:
        started = time.perf_counter()
        views, boxes = list(request.views), list(request.boxes)
        most = MAX_CLIP_FRAMES if request.is_clip else MAX_VIEWS
        if not 1 <= len(views) <= most:
            raise InvalidImageError(f"the pick comes with {len(views)} views; give 1 to {most}")
        if boxes and len(boxes) != len(views):
            raise InvalidImageError(
                f"the pick comes with {len(boxes)} boxes for {len(views)} views; give one box per view, or none"
            )
        if len(views) > MAX_VIEWS:  # of a clip, frames spread evenly
            chosen = np.linspace(0, len(views) - 1, MAX_VIEWS).round().astype(int)
            views = [views[number] for number in chosen]
            boxes = [boxes[number] for number in chosen] if boxes else []
        with self._engines.use() as engine:
            inspector, response.model = engine.inspector, engine.model
            if inspector is None:
                raise BundleError(f"{engine.model} has no defect head; load a model that has one")
            crops = [
                engine.pipeline.crop(image, box=box) for image, box in decode_views(views, boxes, MAX_VIEWS)
            ]
            images, pick = inspector.view_probabilities(np.stack(crops))
            rules = {unit: rule_for(inspector, unit, self._rate()) for unit in ("image", "pick")}
        response.assessment = to_assessment(pick, rules["pick"])
        response.view_assessments = [to_assessment(row, rules["image"]) for row in images]
        response.processing_ms = (time.perf_counter() - started) * 1e3
