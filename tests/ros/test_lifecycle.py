"""Lifecycle of the perception node, driven from outside; and of a node that takes its time."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from mca_perception_msgs.msg import PerceivedObjects
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mca_perception.ros import qos
from mca_perception.ros.images import to_image_message
from mca_perception.ros.managed_node import ManagedNode, transition

pytestmark = pytest.mark.xdist_group("test_lifecycle")

Scene = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def client(lasting_client: Any) -> Any:
    return lasting_client


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Any], colour_bundle: Path) -> Any:
    return start_node(
        "perception_node", model=str(colour_bundle), frame_policy="every_frame", autostart=False
    )


def change(client: Any, transition: int) -> bool:
    request = Transition(id=transition)
    return bool(client.call(ChangeState, "perception/change_state", transition=request).success)


def state(client: Any) -> str:
    return str(client.call(GetState, "perception/get_state").current_state.label)


def test_without_autostart_the_node_waits(node: Any, client: Any) -> None:
    assert state(client) == "unconfigured"
    facts = client.perception(lambda facts: True, "diagnostics")
    assert facts["state"] == "unconfigured"


def test_a_full_round_through_the_states_twice(node: Any, client: Any, scene: Scene) -> None:
    objects = client.collect(PerceivedObjects, "objects")
    publisher = client.node.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
    for expected in (1, 2):
        assert change(client, Transition.TRANSITION_CONFIGURE)
        assert state(client) == "inactive"
        assert publisher.get_subscription_count() == 0
        assert change(client, Transition.TRANSITION_ACTIVATE)
        client.heard()
        client.wait(publisher.get_subscription_count, what="the subscription")
        publisher.publish(to_image_message(scene("red"), "rgb8", Header()))
        client.wait(lambda expected=expected: len(objects) == expected, what="objects")
        assert objects[-1].sequence == 0
        assert change(client, Transition.TRANSITION_DEACTIVATE)
        assert state(client) == "inactive"
        client.wait(lambda: publisher.get_subscription_count() == 0, what="the end of the subscription")
        assert change(client, Transition.TRANSITION_CLEANUP)
        assert state(client) == "unconfigured"


def test_nothing_is_published_after_deactivation(node: Any, client: Any, scene: Scene) -> None:
    objects = client.collect(PerceivedObjects, "objects", qos.RESULTS)
    publisher = client.node.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
    assert change(client, Transition.TRANSITION_CONFIGURE)
    assert change(client, Transition.TRANSITION_ACTIVATE)
    client.heard()
    client.wait(publisher.get_subscription_count, what="the subscription")
    for _ in range(10):  # more than can be processed until the transition comes
        publisher.publish(to_image_message(np.full((1200, 1600, 3), 127, np.uint8), "rgb8", Header()))
    assert change(client, Transition.TRANSITION_DEACTIVATE)
    client.perception(lambda facts: facts["state"] == "inactive", "an inactive node")
    count = len(objects)
    client.perception(lambda facts: facts["state"] == "inactive", "a further second")
    assert len(objects) == count
    assert change(client, Transition.TRANSITION_CLEANUP)


def test_transitions_that_do_not_fit_are_refused(node: Any, client: Any) -> None:
    assert not change(client, Transition.TRANSITION_ACTIVATE)
    assert not change(client, Transition.TRANSITION_DEACTIVATE)
    assert state(client) == "unconfigured"


def test_shutdown_finalises_the_node_and_the_process_stays_stoppable(node: Any, client: Any) -> None:
    assert change(client, Transition.TRANSITION_CONFIGURE)
    assert change(client, Transition.TRANSITION_INACTIVE_SHUTDOWN)
    assert state(client) == "finalized"
    assert node.stop() == 0


class BuildingNode(ManagedNode):
    """Builds until it is told to go on, and cannot be activated the first time."""

    def __init__(self, **options: Any) -> None:
        super().__init__("perception", **options)
        self.may_go_on = threading.Event()
        self.fails = True
        self.create_timer(0.1, lambda: self._diagnostics.publish(*self._status(self.state, {})))

    @transition("inactive")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.tell("building an engine")
        assert self.may_go_on.wait(30)
        return super().on_configure(state)

    @transition("active")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self.fails:
            self.fails = False
            raise RuntimeError("the camera is gone")
        return super().on_activate(state)

    def _stop(self) -> None:
        pass

    def _release(self) -> None:
        pass


@pytest.fixture
def building_node(ros_domain: int) -> Iterator[BuildingNode]:
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    made = BuildingNode(namespace="/building", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


def test_what_a_transition_does_and_why_it_failed_is_shown(building_node: BuildingNode, client: Any) -> None:
    spinner = rclpy.executors.SingleThreadedExecutor(context=building_node.context)
    spinner.add_node(building_node)
    thread = threading.Thread(target=spinner.spin)
    thread.start()

    def wait_for(message: str) -> dict[str, str]:
        found: dict[str, str] = client.perception(
            lambda facts: facts["message"] == message, message, namespace="/building"
        )
        return found

    configure = spinner.create_task(building_node.trigger_configure)
    try:
        for _ in range(2):  # again and again: that is what shows that it does not hang
            facts = wait_for("configuring: building an engine")
            assert (facts["state"], facts["building"]) == ("configuring", "building an engine")
    finally:
        building_node.may_go_on.set()
    assert wait_for("inactive")["state"] == "inactive"
    assert configure.result() == TransitionCallbackReturn.SUCCESS
    spinner.create_task(building_node.trigger_activate)
    facts = wait_for("not active: RuntimeError: the camera is gone")
    assert facts["state"] == "inactive"
    assert facts["transition_error"] == "RuntimeError: the camera is gone"
    spinner.create_task(building_node.trigger_activate)
    facts = wait_for("no image received yet")
    assert (facts["state"], facts["transition_error"], facts["last_error"]) == ("active", "", "")
    spinner.shutdown()
    thread.join(10)
