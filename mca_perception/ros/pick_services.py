"""Services about one picked object, shown in views of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mca_perception_msgs.msg import ProductHypothesis
from mca_perception_msgs.srv import IdentifyPick
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import BoundingBox2D

from mca_perception.errors import GalleryError, InvalidImageError
from mca_perception.ros.engine import EngineSlot, Settings
from mca_perception.ros.frames import Container
from mca_perception.ros.images import decode_compressed
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["MAX_TOP_K", "MAX_VIEWS", "PickServices", "decode_views"]

MAX_VIEWS = 3
MAX_TOP_K = 100


class PickServices:
    """``identify_pick``: which product is this?

    Args:
        thread: offers the service.
        engines: the model in use.
        container: the container that is set; its products are searched unless the request names others.
        settings: the present settings.
    """

    def __init__(
        self,
        thread: ServiceThread,
        engines: EngineSlot,
        *,
        container: Callable[[], Container],
        settings: Callable[[], Settings],
    ) -> None:
        self._engines = engines
        self._container = container
        self._settings = settings
        thread.add(IdentifyPick, "identify_pick", self._identify)

    def _identify(self, request: IdentifyPick.Request, response: IdentifyPick.Response) -> None:
        started = time.perf_counter()
        settings = self._settings()
        if request.top_k > MAX_TOP_K:
            raise GalleryError(f"top_k is {request.top_k}; ask for at most {MAX_TOP_K} products")
        with self._engines.use() as engine:
            if engine.gallery is None:
                raise GalleryError("the node has no gallery; start it with the parameter gallery")
            container = self._container()
            if request.product_ids:
                container, response.unknown_products = engine.container("", request.product_ids)
            views = decode_views(request.views, request.boxes)
            crops = [engine.pipeline.crop(image, box=box) for image, box in views]
            answer = engine.pipeline.identify_pick(
                dict(enumerate(crops)),
                manifest=container.product_ids,
                top_k=request.top_k or settings.top_k,
                reject_unknown=False,
            )
            calibration = engine.pipeline.identification_settings.calibration_for(
                len(crops), within_manifest=container.product_ids is not None
            )
            response.model = engine.model
        response.products = [
            ProductHypothesis(product_id=product, score=score)
            for product, score in zip(answer.products, answer.scores, strict=True)
        ]
        response.is_unknown = bool(
            settings.reject_unknown
            and calibration is not None
            and answer.scores
            and answer.scores[0] <= calibration.threshold
        )
        response.processing_ms = (time.perf_counter() - started) * 1e3


def decode_views(
    views: Sequence[CompressedImage], boxes: Sequence[BoundingBox2D], limit: int = MAX_VIEWS
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32] | None]]:
    """Decode the views of a pick, one at a time.

    Args:
        views: JPEG or PNG files, at least one.
        boxes: where the object is, one per view in its pixels; none when it fills its view.
        limit: most views.

    Yields:
        Image uint8 ``[H, W, 3]`` RGB, and the object's box ``[4]`` xyxy; None when it fills its view.

    Raises:
        InvalidImageError: too many or too few views or boxes, a view that cannot be decoded, a box without pixels.
    """
    if not 1 <= len(views) <= limit:
        raise InvalidImageError(f"the pick comes with {len(views)} views; give 1 to {limit}")
    if boxes and len(boxes) != len(views):
        raise InvalidImageError(
            f"the pick comes with {len(boxes)} boxes for {len(views)} views; give one box per view, or none"
        )
    for number, view in enumerate(views):
        try:
            image = decode_compressed(view)
        except InvalidImageError as error:
            raise InvalidImageError(f"view {number}: {error}") from error
        height, width = image.shape[:2]
        yield image, _corners(boxes[number], width, height, number) if boxes else None


def _corners(box: BoundingBox2D, width: int, height: int, number: int) -> NDArray[np.float32]:
    """Corners xyxy of a box, cut to the image."""
    x, y, w, h = box.center.position.x, box.center.position.y, box.size_x, box.size_y
    if not all(math.isfinite(value) for value in (x, y, w, h)) or box.center.theta:
        raise InvalidImageError(f"box of view {number} is not a finite, upright rectangle; fix the request")
    x1, x2 = (min(max(edge, 0.0), float(width)) for edge in (x - w / 2, x + w / 2))
    y1, y2 = (min(max(edge, 0.0), float(height)) for edge in (y - h / 2, y + h / 2))
    if x2 - x1 < 1 or y2 - y1 < 1:
        raise InvalidImageError(
            f"box of view {number} covers less than a pixel of its {width} x {height} image; "
            "give it in pixels of that view"
        )
    return np.array([x1, y1, x2, y2], np.float32)
