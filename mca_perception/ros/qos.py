"""Quality of service, named once.

Outputs are reliable, because a reliable publisher serves reliable and best-effort subscribers alike. Inputs
follow the frame policy: a camera is read best-effort (which matches every camera driver), a bag or a folder
is read reliably.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from mca_perception.ros.frame_policy import EVERY_FRAME

__all__ = [
    "CAMERA",
    "DIAGNOSTICS",
    "EVERY_IMAGE",
    "IMAGE_OUTPUT",
    "LATCHED",
    "POSTS",
    "REQUESTS",
    "RESULTS",
    "image_input",
    "latched",
]


def _profile(depth: int, *, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


CAMERA = _profile(1, reliable=False)
"""Images of a live camera: only the newest counts."""

EVERY_IMAGE = _profile(16)
"""Images of a file or bag: none may be lost."""

EVERY_IMAGE_BEST_EFFORT = _profile(16, reliable=False)
"""The same from a publisher that is not reliable."""

SENSOR = _profile(8, reliable=False)
"""Depth images and camera_info, which come beside the images."""

IMAGE_OUTPUT = _profile(8)
"""Images that are published: source images, instance mask, overlay."""

RESULTS = _profile(16)
"""Objects and detections."""

LATCHED = _profile(1, latched=True)
"""Facts that a late subscriber still gets: label_info."""

POSTS = _profile(1000)
"""Crisis posts, reports and alerts: they come in bursts, and none may be lost."""

REQUESTS = _profile(1000)
"""Requests of a service that many call at the same time; by default only ten wait."""

DIAGNOSTICS = _profile(10)
"""/diagnostics."""


def latched(profile: QoSProfile) -> QoSProfile:
    """The same for a publisher that keeps its last messages for those who come later."""
    return _profile(profile.depth, latched=True)


def image_input(input_qos: str, frame_policy: str) -> QoSProfile:
    """Profile of the image subscriptions.

    Args:
        input_qos: ``auto`` (follow the frame policy), ``best_effort`` or ``reliable``.
        frame_policy: name of the frame policy.
    """
    if input_qos == "auto":
        input_qos = "reliable" if frame_policy == EVERY_FRAME else "best_effort"
    return EVERY_IMAGE if input_qos == "reliable" else CAMERA
