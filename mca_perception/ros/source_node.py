"""The node ``source``: publishes the images of a folder, video, camera or bag, then ends with a count.

Run it with ``python -m mca_perception.ros.source_node --ros-args -p source:=<folder|video|/dev/videoN|bag>``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from mca_perception_msgs.msg import PerceivedObjects
from mca_perception_msgs.srv import SetContainer
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.errors import InvalidImageError, SourceError
from mca_perception.ros import qos
from mca_perception.ros.conversions import stamp_ns, time_message
from mca_perception.ros.depth_input import info_of
from mca_perception.ros.diagnostics import PERIOD_S, DiagnosticsPublisher, read_status
from mca_perception.ros.flow import AnswerTracker, Pacer
from mca_perception.ros.images import decode_encoded, to_image_message, wrap_encoded
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.pick_replay import PickReplay
from mca_perception.ros.pick_source import PickSource
from mca_perception.ros.runner import FAILED, Spinner, run_node
from mca_perception.ros.sources import Frame, encode, open_source

__all__ = ["SourceNode", "main"]

_FLUSH_S = 5.0
_STATUS_S = 3.0
_GRAPH_S = 10.0
_SERVICE_TIMEOUT_S = 10.0
_CALLBACKS_S = 0.001  # also an unpaced source takes answers between two images


class SourceNode(Node):
    """Publishes images; parameters are described in ``docs/ros.md``."""

    def __init__(self, **options: Any) -> None:
        super().__init__("source", **options)
        self.parameters = NodeParameters(self, "source")
        self.source = open_source(self.parameters["source"], topic=self.parameters["topic"])
        self._raw = self.parameters["encoding"] == "raw"
        kind, topic = (Image, "image") if self._raw else (CompressedImage, "image/compressed")
        self._images = self.create_publisher(kind, topic, qos.IMAGE_OUTPUT)
        self._depth = self.create_publisher(Image, "depth", qos.IMAGE_OUTPUT)
        self._camera_info = self.create_publisher(CameraInfo, "camera_info", qos.IMAGE_OUTPUT)
        replays = isinstance(self.source, PickSource) and self.parameters["replay_picks"]
        self._picks = PickReplay(self) if replays else None
        self._diagnostics = DiagnosticsPublisher(self, "source")
        self._containers: Any = self.create_client(SetContainer, "set_container")
        self._container: tuple[str, tuple[str, ...] | None] = ("", None)
        self._service_patience = _STATUS_S
        self._consumers = 0
        self._last_stamp = 0
        self.sent = 0
        self.finished = False
        self.answers = AnswerTracker(self.parameters["answer_timeout_s"])
        self.create_subscription(
            PerceivedObjects,
            "objects",
            lambda message: self.answers.answer(stamp_ns(message.header.stamp)),
            qos.RESULTS,
        )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)
        self.create_timer(PERIOD_S, self.publish_status)
        self.get_logger().info(self.source.description)

    def has_reader(self) -> bool:
        """Whether somebody takes the images."""
        return self._images.get_subscription_count() > 0

    def is_heard(self) -> bool:
        """Whether the perception node knows this node as a reader of its objects, and all others to wait for."""
        return self._consumers > int(self.parameters["wait_for_consumers"])

    def knows_readers(self) -> bool:
        """Whether this node itself has found as many readers of the objects, its own subscription among them.

        That the perception node has found them says nothing about this one. Subscriptions of a node are found in
        the order in which it made them: what subscribes to the objects last gets status and views of picks from here.
        """
        return self.count_subscribers("objects") > int(self.parameters["wait_for_consumers"])

    def may_send(self) -> bool:
        """Whether few enough images are unanswered. Cameras are never held back."""
        limit = self.parameters["max_in_flight"]
        return self.source.live or not limit or self.answers.in_flight() < limit

    def is_answered(self) -> bool:
        """Whether no image waits for an answer, or nobody gives answers."""
        return not self.count_publishers("objects") or not self.answers.in_flight()

    def announces(self, frame: Frame) -> bool:
        """Whether the container has to be announced before this frame."""
        container = (frame.container_id, frame.product_ids)
        return self.parameters["announce_containers"] and container != self._container

    def announce(self, frame: Frame, spinner: Spinner) -> None:
        """Tell the perception node which container the next image shows."""
        self._container = (frame.container_id, frame.product_ids)
        request = SetContainer.Request(
            container_id=frame.container_id, product_ids=list(frame.product_ids or ())
        )
        patience, self._service_patience = self._service_patience, 0.0  # waits once, not for every image
        if not spinner.spin_until(self._containers.service_is_ready, patience):
            if spinner.is_stopped():
                return
            self.get_logger().warning(
                "no service set_container: images go without their container", once=True
            )
            return
        response = spinner.call(self._containers, request, _SERVICE_TIMEOUT_S)
        if response is None or not response.success:
            reason = response.message if response else f"no answer within {_SERVICE_TIMEOUT_S:g} s"
            self.get_logger().warning(f"container {frame.container_id} was not set: {reason}")

    def send(self, frame: Frame) -> None:
        """Publish one image, its depth and camera_info before it, stamped now or as recorded; stamps always grow.

        Raises:
            InvalidImageError: it cannot be decoded, which only ``raw`` needs.
        """
        stamp = self.get_clock().now().nanoseconds
        if self.parameters["keep_stamps"] and frame.stamp_ns is not None:
            stamp = frame.stamp_ns
        stamp = self._last_stamp = max(stamp, self._last_stamp + 1)
        frame_id = self.parameters["frame_id"] or frame.frame_id or "camera"
        header = Header(stamp=time_message(stamp), frame_id=frame_id)
        message = self._message(frame, header)
        if frame.camera is not None:
            self._camera_info.publish(info_of(frame.camera, header))
        if frame.depth is not None:
            self._depth.publish(to_image_message(frame.depth, "16UC1", header))
        self._images.publish(message)
        self.answers.sent(stamp)
        self.sent += 1

    def replay_pick(self, frame: Frame, spinner: Spinner) -> None:
        """What follows the image of a container from which something is picked."""
        if self._picks is not None and frame.pick is not None:
            self._picks.replay(frame.pick, self._last_stamp, spinner)

    def _message(self, frame: Frame, header: Header) -> Image | CompressedImage:
        if not self._raw:
            data, image_format = encode(frame)
            return wrap_encoded(data, header, image_format)
        pixels = frame.pixels if frame.pixels is not None else decode_encoded(frame.encoded or b"")
        return to_image_message(pixels, "rgb8", header)

    def publish_status(self) -> None:
        """Publish the counts on ``/diagnostics``."""
        facts = {
            "finished": self.finished,
            "frames_sent": self.sent,
            "frames_skipped": self.source.skipped,
            "frames_answered": self.answers.answered,
            "frames_unanswered": self.answers.unanswered,
            **(self._picks.facts() if self._picks else {}),
            "source": self.source.description,
        }
        level = DiagnosticStatus.WARN if self.source.skipped else DiagnosticStatus.OK
        self._diagnostics.publish(level, self.summary(), facts)

    def summary(self) -> str:
        """The counts as one line."""
        counts = [f"{self.sent} sent", f"{self.answers.answered} answered"]
        if self.answers.unanswered:
            counts.append(f"{self.answers.unanswered} unanswered")
        if self.source.skipped:
            counts.append(f"{self.source.skipped} unreadable and skipped")
        if self._picks:
            counts.append(self._picks.summary())
        return ", ".join(counts)

    def flush(self) -> None:
        """Say that this was all, and wait until images and status have been delivered."""
        from rclpy.duration import Duration

        self._images.wait_for_all_acked(Duration(nanoseconds=int(_FLUSH_S * 1e9)))
        self.finished = True
        self.publish_status()
        self._diagnostics.flush(_FLUSH_S)

    def close(self) -> None:
        """Release the source."""
        self.source.close()

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        facts = read_status(array, self.get_namespace(), "perception")
        if facts is not None and facts.get("state") == "active":
            self._consumers = int(facts.get("objects_subscribers", 0))


def _run(node: SourceNode, spinner: Spinner) -> int:
    """Wait for a reader, send everything, wait for the answers, say that it is over."""
    if problem := _wait_for_readers(node, spinner):
        node.get_logger().error(problem)
        return FAILED
    _send_all(node, spinner)
    spinner.spin_until(node.is_answered)
    node.flush()
    node.get_logger().info(node.summary())
    return 0 if node.sent or spinner.is_stopped() else FAILED


def _wait_for_readers(node: SourceNode, spinner: Spinner) -> str:
    """Wait until images and answers will get through; returns what is missing after the time limit."""
    patience, others = node.parameters["wait_for_subscriber_s"], node.parameters["wait_for_consumers"]
    needed = others or node.parameters["wait_for_perception"]
    if not patience:
        return ""
    where = f"in {node.get_namespace()} after {patience:g} s"
    if not spinner.spin_until(node.has_reader, patience) and not spinner.is_stopped():
        return f"nobody reads the images {where}; start the perception node there"
    # Without others to wait for, a perception node that gives no status is no reason not to start.
    heard = spinner.spin_until(node.is_heard, patience if needed else min(patience, _STATUS_S))
    # With a limit: behind a discovery server, readers of what others publish stay out of sight.
    if heard and not spinner.spin_until(node.knows_readers, _GRAPH_S) and not spinner.is_stopped():
        node.get_logger().warning(
            f"fewer than {others} other readers of the objects in sight; they may miss status and views of picks"
        )
    if heard or not needed or spinner.is_stopped():
        return ""
    if others:
        return f"fewer than {others} other nodes read the objects {where}; start them, or wait for fewer"
    return f"no perception node is active {where}; its log tells why"


def _send_all(node: SourceNode, spinner: Spinner) -> None:
    pacer = Pacer(node.parameters["rate_hz"])
    limit = node.parameters["max_frames"]
    while not spinner.is_stopped():
        before = node.sent
        for frame in _frames(node):
            # A container belongs to the images after its announcement, so those before it must be through.
            ready = node.is_answered if node.announces(frame) else node.may_send
            spinner.spin_until(ready)
            if node.announces(frame):
                node.announce(frame, spinner)
            spinner.spin_until(lambda: False, max(pacer.delay(frame.time_ns), _CALLBACKS_S))
            if spinner.is_stopped():
                return
            try:
                node.send(frame)
                node.replay_pick(frame, spinner)
            except InvalidImageError as error:
                node.source.skipped += 1
                node.get_logger().warning(f"{frame.name} skipped: {error}")
            if limit and node.sent >= limit:
                return
        if not node.parameters["loop"] or node.sent == before:
            return


def _frames(node: SourceNode) -> Iterator[Frame]:
    """The images of the source, up to where it is damaged; what came before counts."""
    try:
        yield from node.source
    except SourceError as error:
        node.get_logger().error(str(error))


def main() -> None:
    """Send the source's images and end."""
    sys.exit(run_node(SourceNode, _run))


if __name__ == "__main__":
    main()
