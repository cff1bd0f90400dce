"""What a robot cell does around a pick: cameras see the object after it, and the cell asks what it has picked."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mca_perception_msgs.srv import IdentifyPick
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from vision_msgs.msg import BoundingBox2D

from mca_perception.datasets.armbench import VIEWS, Pick, Polygons, rasterise_polygons
from mca_perception.errors import InvalidImageError
from mca_perception.identification.crops import BACKGROUND, mask_box
from mca_perception.ros import qos
from mca_perception.ros.conversions import time_message
from mca_perception.ros.image_headers import image_format
from mca_perception.ros.images import decode_encoded, wrap_encoded
from mca_perception.ros.runner import Spinner
from mca_perception.ros.sources import read_encoded

__all__ = ["TOPICS", "PickReplay"]

TOPICS = {
    "ToteWallRGB": "tote_wall/image/compressed",
    "OnArmLowRGB": "on_arm_low/image/compressed",
    "FarTrayRGB": "far_tray/image/compressed",
}
"""Topics of the views after a pick."""

_MAX_VIEWS = 3
"""Views that one request may hold: the one before the pick, and two after it."""

_TIMEOUT_S = 30.0


class PickReplay:
    """Publishes the views after a pick, asks ``identify_pick`` with them, and counts right answers.

    Attributes:
        asked: picks asked about.
        answered: picks with an answer.
        correct: picks whose first product is the annotated one.
    """

    def __init__(self, node: Node) -> None:
        """Offer the topics.

        Args:
            node: publishes and asks.
        """
        self.asked = self.answered = self.correct = 0
        self._node = node
        self._patience_s = _TIMEOUT_S
        self._publishers = {
            view: node.create_publisher(CompressedImage, topic, qos.IMAGE_OUTPUT)
            for view, topic in TOPICS.items()
        }
        self._client: Any = node.create_client(IdentifyPick, "identify_pick")

    def replay(self, pick: Pick, stamp_ns: int, spinner: Spinner) -> None:
        """Show the views after a pick whose image before it has been sent, then ask what was picked.

        Views that cannot be read are left out, with a warning.

        Args:
            pick: the pick.
            stamp_ns: of the image before it; the views get the next ones.
            spinner: runs callbacks while the answer is under way.
        """
        request = IdentifyPick.Request()
        for number, (view, path) in enumerate((v, pick.views[v]) for v in VIEWS if v in pick.views):
            header = Header(stamp=time_message(stamp_ns + number), frame_id=view)
            try:
                data = read_encoded(path)
                image, box = _question(data, pick.polygons.get(view), header)
            except (InvalidImageError, OSError) as error:
                self._node.get_logger().warning(f"view {view} of pick {pick.id} left out: {error}")
                continue
            if view in self._publishers:
                self._publishers[view].publish(wrap_encoded(data, header, image_format(data)))
            if len(request.views) < _MAX_VIEWS:
                request.views.append(image)
                request.boxes.append(box)
        self._ask(pick, request, spinner)

    def facts(self) -> dict[str, int]:
        """The counts for ``/diagnostics``."""
        return {
            "picks_asked": self.asked,
            "picks_answered": self.answered,
            "picks_correct": self.correct,
        }

    def summary(self) -> str:
        """The counts as one line."""
        share = f" ({self.correct / self.answered:.3f})" if self.answered else ""
        return f"{self.answered} of {self.asked} picks identified, {self.correct} right{share}"

    def _ask(self, pick: Pick, request: IdentifyPick.Request, spinner: Spinner) -> None:
        self.asked += 1
        log = self._node.get_logger()
        patience, self._patience_s = self._patience_s, 0.0  # waits once, not for every pick
        if not spinner.spin_until(self._client.service_is_ready, patience):
            log.warning("no service identify_pick: picks are shown only", once=True)
            return
        answer = spinner.call(self._client, request, _TIMEOUT_S)
        if answer is None or not answer.success:
            reason = answer.message if answer else f"no answer within {_TIMEOUT_S:g} s"
            log.warning(f"pick {pick.id} was not identified: {reason}")
            return
        self.answered += 1
        best = answer.products[0].product_id if answer.products else "nothing"
        self.correct += best == pick.product_id
        log.info(f"pick {pick.id}: {best}, annotated {pick.product_id}, {len(request.views)} views")


def _question(data: bytes, outline: Polygons | None, header: Header) -> tuple[CompressedImage, BoundingBox2D]:
    """A view as `identify_pick` wants it: the object alone on grey, and the box around it.

    Surroundings within the box would count as the object. A view without outline is sent whole.
    """
    image = decode_encoded(data)
    height, width = image.shape[:2]
    if outline is None:
        return wrap_encoded(data, header, image_format(data)), _message(0, 0, width, height)
    mask = rasterise_polygons(outline, height, width)
    alone = np.where(mask[..., None], image, np.uint8(BACKGROUND))
    _, encoded = cv2.imencode(".png", alone[..., ::-1])
    x1, y1, x2, y2 = mask_box(mask) if mask.any() else (0, 0, width, height)
    return wrap_encoded(encoded.tobytes(), header, "png"), _message(x1, y1, x2, y2)


def _message(x1: float, y1: float, x2: float, y2: float) -> BoundingBox2D:
    message = BoundingBox2D(size_x=float(x2 - x1), size_y=float(y2 - y1))
    message.center.position.x, message.center.position.y = float(x1 + x2) / 2, float(y1 + y2) / 2
    return message
