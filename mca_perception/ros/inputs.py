"""The subscriptions of the nodes: images, depth, camera_info; and what is wrong with their publishers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mca_perception.ros import qos
from mca_perception.ros.depth_input import DepthInput
from mca_perception.ros.parameters import NodeParameters

__all__ = ["Inputs"]


class Inputs:
    """Subscribes on construction, unsubscribes on :meth:`close`.

    A reliable subscription never hears a best-effort publisher. With ``input_qos`` on ``auto`` the subscription then
    becomes best effort, which every publisher serves; otherwise the mismatch is reported.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters | Mapping[str, Any],
        receive: Callable[[Image | CompressedImage], None],
        depth: DepthInput | None = None,
    ) -> None:
        """Subscribe to what the parameters ask for.

        Args:
            node: subscribes.
            parameters: of the node; ``input_qos``, ``input_transport`` and ``frame_policy`` are asked for.
            receive: takes images.
            depth: takes depth images and camera_info; nobody does when not given.
        """
        self._node = node
        self._automatic = parameters["input_qos"] == "auto"
        self._profile = qos.image_input(parameters["input_qos"], parameters["frame_policy"])
        self._problems: dict[str, str] = {}
        self._subscriptions: dict[str, Any] = {}
        self._superseded: list[Any] = []
        transport = parameters["input_transport"]
        for name, kind, topic in (
            ("raw", Image, "image"),
            ("compressed", CompressedImage, "image/compressed"),
        ):
            if transport in ("auto", name):
                self.subscribe(kind, topic, receive, self._profile)
        if depth is None:
            return
        # Best effort serves drivers of both kinds; a missing depth image costs the 3D of one frame.
        self._add(Image, "depth", depth.receive_depth, qos.SENSOR)
        self._add(CameraInfo, "camera_info", depth.receive_info, qos.SENSOR)

    def subscribe(self, kind: Any, topic: str, callback: Callable[[Any], None], profile: QoSProfile) -> None:
        """Subscribe to a topic; a publisher that does not match is dealt with or reported, as for images."""

        def mismatch(event: Any) -> None:
            self._on_mismatch(kind, topic, callback, profile, event)

        self._add(kind, topic, callback, profile, SubscriptionEventCallbacks(incompatible_qos=mismatch))

    def _add(
        self,
        kind: Any,
        topic: str,
        callback: Callable[[Any], None],
        profile: QoSProfile,
        events: SubscriptionEventCallbacks | None = None,
    ) -> None:
        self._subscriptions[topic] = self._node.create_subscription(
            kind, topic, callback, profile, event_callbacks=events
        )

    def _on_mismatch(
        self, kind: Any, topic: str, callback: Callable[[Any], None], profile: QoSProfile, event: Any
    ) -> None:
        policy = QoSPolicyKind(event.last_policy_kind)
        reliable = profile.reliability == ReliabilityPolicy.RELIABLE
        name = self._node.resolve_topic_name(topic)
        if policy == QoSPolicyKind.RELIABILITY and reliable and self._automatic:
            self._node.get_logger().warning(
                f"{name} is published best effort: reading it best effort, single images may be lost on the way"
            )
            # Destroying a subscription in its own event would pull the event from under the executor.
            self._superseded.append(self._subscriptions.pop(topic))
            self.subscribe(kind, topic, callback, qos.EVERY_IMAGE_BEST_EFFORT)
            return
        remedy = "set input_qos:=best_effort" if reliable else "change the publisher"
        self._problems[topic] = f"{name}: the publisher's {policy.name.lower()} does not match; {remedy}"
        self._node.get_logger().error(self._problems[topic])

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics."""
        for subscription in self._superseded:
            self._node.destroy_subscription(subscription)
        self._superseded.clear()
        return {
            "image_publishers": sum(
                self._node.count_publishers(self._node.resolve_topic_name(topic))
                for topic in ("image", "image/compressed")
                if topic in self._subscriptions
            ),
            "input_problem": "; ".join(self._problems.values()),
        }

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in (*self._superseded, *self._subscriptions.values()):
            self._node.destroy_subscription(subscription)
        self._superseded.clear()
        self._subscriptions.clear()
