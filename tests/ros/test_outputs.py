import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy
from mca_perception_msgs.msg import PerceivedObjects
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, Detection3DArray

from mca_perception.objects import Objects
from mca_perception.ros import conversions, qos
from mca_perception.ros.annotations import Annotations
from mca_perception.ros.depth_input import DepthInput
from mca_perception.ros.frames import Container, PendingFrame
from mca_perception.ros.outputs import Outputs
from mca_perception.ros.parameters import NodeParameters, load_schema
from mca_perception.ros.processing import FrameProcessor, Perceived
from mca_perception.ros.statistics import Statistics

SIZE = (4, 6)
FRAME = conversions.FrameInfo(Header(frame_id="camera"), "", "model@1", 0)
CONVERSIONS = {
    "detections": (Detection2DArray, "to_detections", qos.RESULTS),
    "instance_mask": (Image, "to_instance_mask", qos.IMAGE_OUTPUT),
    "detections_3d": (Detection3DArray, "to_detections_3d", qos.RESULTS),
}


@pytest.fixture
def node(ros_domain: int) -> Iterator[LifecycleNode]:
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    made = LifecycleNode("outputs", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the messages that were built, in order."""
    names: list[str] = []
    for topic, (_, function, _) in CONVERSIONS.items():
        make = getattr(conversions, function)

        def recorded(*arguments: Any, topic: str = topic, make: Any = make) -> Any:
            names.append(topic)
            return make(*arguments)

        monkeypatch.setattr(conversions, function, recorded)
    return names


def publish(outputs: Outputs) -> None:
    objects = Objects.empty(SIZE, ("item",), instance_mask=np.zeros(SIZE, np.uint16))
    outputs.publish_objects(objects, FRAME, received_ns=0, queue_ms=0.0, surfaces=[])
    outputs.annotations.publish_detections(objects, FRAME.header)
    outputs.publish_mask(objects, FRAME.header)
    outputs.publish_detections_3d(objects, [], FRAME.header)


@pytest.mark.parametrize("publishes_mask", [True, False])
@pytest.mark.parametrize("topic", [*CONVERSIONS, ""])
def test_messages_are_built_for_those_who_listen(
    node: LifecycleNode, built: list[str], topic: str, publishes_mask: bool
) -> None:
    outputs = Outputs(node, {"publish_mask": publishes_mask})  # type: ignore[arg-type]
    node.trigger_configure()
    node.trigger_activate()
    received: list[Any] = []
    executor = SingleThreadedExecutor(context=node.context)
    listener = rclpy.create_node("listener", context=node.context)
    executor.add_node(listener)
    always = listener.create_subscription(PerceivedObjects, "objects", received.append, qos.RESULTS)
    if topic:
        kind, _, profile = CONVERSIONS[topic]
        listener.create_subscription(kind, topic, received.append, profile)
    expected = [topic] if topic and (publishes_mask or topic != "instance_mask") else []
    try:
        end = time.monotonic() + 20
        while not (outputs.facts()["objects_subscribers"] and (not topic or node.count_subscribers(topic))):
            assert time.monotonic() < end, "nobody was discovered"
            executor.spin_once(timeout_sec=0.05)
        # The graph knows a subscriber a moment before its publisher does.
        while len(received) < 1 + len(expected):
            assert time.monotonic() < end, f"received {received}"
            built.clear()
            received.clear()
            publish(outputs)
            limit = time.monotonic() + 1
            while len(received) < 1 + len(expected) and time.monotonic() < limit:
                executor.spin_once(timeout_sec=0.05)
        assert built == expected
        assert {type(message) for message in received} == {
            PerceivedObjects,
            *(CONVERSIONS[name][0] for name in expected),
        }
    finally:
        listener.destroy_subscription(always)
        executor.shutdown(timeout_sec=1.0)
        listener.destroy_node()
        outputs.close()


class HungryAnnotations(Annotations):
    """No memory is left for overlays."""

    def publish_overlay(self, *arguments: Any) -> bool:
        raise MemoryError("no room for the overlay")


class HungryOutputs(Outputs):
    """No memory is left for what comes beside the objects."""

    def __init__(self, node: LifecycleNode, parameters: NodeParameters) -> None:
        super().__init__(node, parameters)
        self.annotations.close()
        self.annotations = HungryAnnotations(node, parameters)

    def publish_mask(self, objects: Objects, header: Header) -> None:
        raise MemoryError("no room for the mask")


def test_what_fails_beside_the_objects_costs_no_frame(node: LifecycleNode) -> None:
    parameters: Any = {name: spec.default for name, spec in load_schema("perception").items()}
    outputs, statistics = HungryOutputs(node, parameters), Statistics()
    node.trigger_configure()
    node.trigger_activate()
    left_out: list[tuple[str, str]] = []
    processor = FrameProcessor(
        None,  # type: ignore[arg-type]  # no alarms, and so no heat maps
        outputs,
        statistics,
        parameters,
        DepthInput(),
        on_drop=lambda cause, reason: None,
        on_left_out=lambda *what: left_out.append(what),
    )
    objects = Objects.empty(SIZE, ("item",), instance_mask=np.zeros(SIZE, np.uint16))
    frame = PendingFrame(Image(header=Header(frame_id="camera")), Container(), 0, 0.0)
    found = Perceived(np.zeros((*SIZE, 3), np.uint8), objects, "model@1", None, 0.0, 0.0)
    for _ in range(2):
        statistics.count_received()
        processor.publish(frame, found, lambda: False)
    snapshot = statistics.snapshot()
    assert (snapshot.received, snapshot.processed, snapshot.drops) == (2, 2, {})
    assert snapshot.last_error == "overlay left out: MemoryError: no room for the overlay"
    assert [name for name, _ in left_out] == ["instance_mask", "overlay"] * 2
    outputs.close()
