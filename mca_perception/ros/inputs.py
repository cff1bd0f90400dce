"""The subscriptions of the nodes: images, depth, camera_info; and what is wrong with their publishers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mca_perception.ros import qos
from mca_perception.ros.depth_input import DepthInput
from mca_perception.ros.parameters import NodeParameters

__all__ = ["Inputs"]

_IMAGE_TOPICS = ("image", "image/compressed")
_CAMERA_INFO = "camera_info"


class _Wanted(NamedTuple):
    """A subscription as the parameters ask for it."""

    kind: Any
    callback: Callable[[Any], None]
    profile: QoSProfile


class Inputs:
    """Subscribes on construction, unsubscribes on :meth:`close`.

    A reliable subscription never hears a best-effort publisher. With ``input_qos`` on ``auto`` the subscription then
    becomes best effort, which every publisher serves; otherwise the mismatch is reported. Images (on ``auto``) and
    camera_info that were published once, for those who come later, are read, too.
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
        self._wanted: dict[str, _Wanted] = {}
        self._latched: set[str] = set()
        self._heard: dict[str, set[bytes]] = {}
        self._subscriptions: dict[str, Any] = {}
        self._superseded: list[Any] = []
        transport = parameters["input_transport"]
        for name, kind, topic in (
            ("raw", Image, _IMAGE_TOPICS[0]),
            ("compressed", CompressedImage, _IMAGE_TOPICS[1]),
        ):
            if transport in ("auto", name):
                self.subscribe(kind, topic, receive, self._profile)
        if depth is None:
            return
        # Best effort serves drivers of both kinds; a missing depth image costs the 3D of one frame.
        self.subscribe(Image, "depth", depth.receive_depth, qos.SENSOR)
        self.subscribe(CameraInfo, _CAMERA_INFO, depth.receive_info, qos.SENSOR)

    def subscribe(self, kind: Any, topic: str, callback: Callable[[Any], None], profile: QoSProfile) -> None:
        """Subscribe to a topic; a publisher that does not match is dealt with or reported, as for images."""
        self._wanted[topic] = _Wanted(kind, callback, profile)
        self._connect(topic)

    def _connect(self, topic: str) -> None:
        """Subscribe as the publishers that are there now offer it."""
        kind, callback, profile = self._wanted[topic]
        self._latched.discard(topic)
        if self._is_kept(topic, self._publishers(topic)):
            self._latched.add(topic)
            profile = qos.latched(profile)

        heard = self._heard.setdefault(topic, set())

        def receive(message: Any, info: Mapping[str, Any]) -> None:
            if publisher := info.get("publisher_gid"):  # told since rclpy 9.1.1
                heard.add(publisher["data"])
            callback(message)

        self._subscriptions[topic] = self._node.create_subscription(
            kind,
            topic,
            receive,
            profile,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=partial(self._on_mismatch, topic)),
        )

    def _is_kept(self, topic: str, publishers: Sequence[Any]) -> bool:
        """Whether all publishers keep messages for late subscribers, which a subscription has to ask for."""
        if not (topic == _CAMERA_INFO or (topic in _IMAGE_TOPICS and self._automatic)):
            return False
        offers = [publisher.qos_profile for publisher in publishers]
        return bool(offers) and all(
            offer.durability == DurabilityPolicy.TRANSIENT_LOCAL
            and offer.reliability == ReliabilityPolicy.RELIABLE
            for offer in offers
        )

    def _on_mismatch(self, topic: str, event: Any) -> None:
        policy = QoSPolicyKind(event.last_policy_kind)
        wanted = self._wanted[topic]
        reliable = wanted.profile.reliability == ReliabilityPolicy.RELIABLE
        if topic in self._latched:
            return  # followed with the next status
        if policy == QoSPolicyKind.RELIABILITY and reliable and self._automatic:
            self._node.get_logger().warning(
                f"{self._name(topic)} is published best effort: reading it best effort, "
                "single images may be lost on the way"
            )
            # Destroying a subscription in its own event would pull the event from under the executor.
            self._superseded.append(self._subscriptions.pop(topic))
            self._wanted[topic] = wanted._replace(profile=qos.EVERY_IMAGE_BEST_EFFORT)
            self._connect(topic)
            return
        remedy = "set input_qos:=best_effort" if reliable else "change the publisher"
        self._node.get_logger().error(self._mismatch(topic, policy.name.lower(), remedy))

    def _follow(self) -> None:
        """Read what publishers keep for late subscribers, and stop that when one comes that does not.

        Whoever has heard all publishers live has missed nothing, and would get their last messages twice.
        """
        for topic in self._wanted:
            publishers = self._publishers(topic)
            if not publishers:
                continue
            heard, latched = self._heard[topic], topic in self._latched
            kept = self._is_kept(topic, publishers)
            present = {bytes(publisher.endpoint_gid) for publisher in publishers}
            heard &= present
            if (latched and not kept) or (kept and not latched and heard != present):
                self._node.destroy_subscription(self._subscriptions.pop(topic))
                self._connect(topic)

    def _publishers(self, topic: str) -> list[Any]:
        return list(self._node.get_publishers_info_by_topic(self._name(topic)))

    def _mismatch(self, topic: str, what: str, remedy: str) -> str:
        return f"{self._name(topic)}: the publisher's {what} does not match; {remedy}"

    def _problems(self) -> list[str]:
        """What keeps images of the publishers that are there now from being read.

        Reliability alone can: a subscription that is neither latched nor bound to deadlines accepts everything else.
        """
        if self._automatic or self._profile.reliability != ReliabilityPolicy.RELIABLE:
            return []
        return [
            self._mismatch(topic, "reliability", "set input_qos:=best_effort")
            for topic in self._image_topics()
            if any(
                publisher.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
                for publisher in self._publishers(topic)
            )
        ]

    def _name(self, topic: str) -> str:
        return str(self._node.resolve_topic_name(topic))

    def _image_topics(self) -> list[str]:
        return [topic for topic in _IMAGE_TOPICS if topic in self._subscriptions]

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics."""
        for subscription in self._superseded:
            self._node.destroy_subscription(subscription)
        self._superseded.clear()
        self._follow()
        return {
            "image_publishers": sum(
                self._node.count_publishers(self._name(topic)) for topic in self._image_topics()
            ),
            "input_problem": "; ".join(self._problems()),
        }

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in (*self._superseded, *self._subscriptions.values()):
            self._node.destroy_subscription(subscription)
        self._superseded.clear()
        self._subscriptions.clear()
