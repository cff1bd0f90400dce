"""Messages as tests send them, and what they say."""

from __future__ import annotations

from mca_perception_msgs.msg import PerceivedObjects
from std_msgs.msg import Header


def stamped(seconds: int) -> Header:
    header = Header(frame_id="camera")
    header.stamp.sec = seconds
    return header


def products(message: PerceivedObjects) -> list[list[tuple[str, float]]]:
    return [
        [(entry.product_id, round(entry.score, 5)) for entry in found.products] for found in message.objects
    ]
