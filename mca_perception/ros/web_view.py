"""Shows the nodes' topics in a browser: a Foxglove WebSocket server that passes messages on as they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from mca_perception_msgs.msg import PerceivedObjects
from rclpy.node import Node
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Float64
from vision_msgs.msg import Detection2DArray, Detection3DArray

from mca_perception.ros import qos
from mca_perception.ros.message_definitions import register_message, type_name
from mca_perception.ros.private_node import private_node
from mca_perception.ros.transport import prepare_process

__all__ = ["TOPICS", "WebView", "serve"]

TOPICS = {
    "overlay/compressed": (CompressedImage, qos.CAMERA),
    "image/compressed": (CompressedImage, qos.CAMERA),
    "objects": (PerceivedObjects, qos.RESULTS),
    "detections": (Detection2DArray, qos.RESULTS),
    "detections_3d": (Detection3DArray, qos.RESULTS),
    "object_points": (PointCloud2, qos.CAMERA),
    "debug/processing_ms": (Float64, qos.RESULTS),
    "debug/pipeline_ms": (Float64, qos.RESULTS),
    "/diagnostics": (DiagnosticArray, qos.DIAGNOSTICS),
}
"""What is offered: topic (relative to the namespace), type and quality of service of the subscription."""

_WATCH_S = 0.5
_POLL_S = 0.2


class WebView:
    """Offers the topics; each is subscribed only while somebody looks at it, so nothing is drawn for nobody."""

    def __init__(self, node: Node, namespaces: list[str]) -> None:
        """Offer the topics of some namespaces.

        Args:
            node: subscribes.
            namespaces: of perception nodes.

        Raises:
            ModuleNotFoundError: foxglove-sdk is not installed.
            SourceError: the definition of a message type is not installed.
        """
        import foxglove

        self._node = node
        self._subscriptions: dict[str, Any] = {}
        self._channels: dict[str, tuple[Any, Any, Any]] = {}
        types = get_typestore(Stores.ROS2_HUMBLE)
        for namespace in namespaces:
            for name, (kind, profile) in TOPICS.items():
                topic = name if name.startswith("/") else f"{namespace.rstrip('/')}/{name}"
                if topic in self._channels:
                    continue
                register_message(type_name(kind), types)
                definition, _ = types.generate_msgdef(type_name(kind), ros_version=2)
                schema = foxglove.Schema(name=type_name(kind), encoding="ros2msg", data=definition.encode())
                channel = foxglove.Channel(topic, schema=schema, message_encoding="cdr")
                self._channels[topic] = (channel, kind, profile)
        node.create_timer(_WATCH_S, self.follow)

    def follow(self) -> None:
        """Subscribe to what is looked at, and to nothing else."""
        for topic, (channel, kind, profile) in self._channels.items():
            watched = channel.has_sinks()
            if watched and topic not in self._subscriptions:
                self._subscriptions[topic] = self._node.create_subscription(
                    kind, topic, _forward(channel), profile, raw=True
                )
            elif not watched and topic in self._subscriptions:
                self._node.destroy_subscription(self._subscriptions.pop(topic))


def _forward(channel: Any) -> Callable[[bytes], None]:
    return lambda data: channel.log(bytes(data), log_time=time.time_ns())


def serve(
    namespaces: list[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    seconds: float | None = None,
    started: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until interrupted.

    Args:
        namespaces: of perception nodes.
        host: address to listen on.
        port: 0 takes a free one.
        seconds: end after so many; ``None`` for no limit.
        started: called with the port.

    Raises:
        ModuleNotFoundError: foxglove-sdk is not installed.
        OSError: the port is in use.
    """
    import foxglove

    prepare_process()
    end = float("inf") if seconds is None else time.monotonic() + seconds
    with private_node("_mca_view") as (node, executor), suppress(KeyboardInterrupt):
        server = foxglove.start_server(name="mca_perception", host=host, port=port)
        try:
            view = WebView(node, namespaces)
            started(server.port)
            while time.monotonic() < end:
                executor.spin_once(timeout_sec=_POLL_S)
            del view
        finally:
            server.stop()
