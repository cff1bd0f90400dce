"""Several cameras in one process: one model, one turn each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import PerceivedObjects
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mca_perception.deploy.sessions.turns import Turns
from mca_perception.ros.descriptions import LaunchError, multi_camera
from mca_perception.ros.engine import Engine, Settings
from mca_perception.ros.frames import NO_CONTAINER
from mca_perception.ros.images import to_image_message

pytestmark = pytest.mark.xdist_group("test_cameras_node")

Scene = Callable[..., NDArray[np.uint8]]


def test_turns_are_taken_in_the_order_of_asking() -> None:
    turns, order = Turns(), []
    asked = [threading.Event() for _ in range(8)]

    def work(number: int) -> None:
        asked[number].set()
        with turns:
            order.append(number)

    threads = []
    with turns:
        for number in range(8):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            assert asked[number].wait(10)
            while len(turns._waiting) <= number:  # asked, and now in the queue
                pass
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))
    with turns:
        order.append(99)
    assert order[-1] == 99


@pytest.mark.parametrize("places", [1, 3])
def test_as_many_as_there_are_places_have_their_turn_at_once(places: int) -> None:
    turns, inside, most = Turns(places), [], []
    meet = threading.Barrier(places, timeout=30)

    def work(number: int) -> None:
        with turns:
            inside.append(number)
            most.append(len(inside))
            meet.wait()  # only a full house gets on
            inside.remove(number)
            meet.wait()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6 * places)))
    assert max(most) == places
    assert not inside


def test_a_failure_passes_the_turn_on() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns:
        raise ValueError("broken")
    with turns:
        pass


def test_engines_of_one_process_share_their_sessions(colour_bundle: Path) -> None:
    first, second = Engine(colour_bundle), Engine(colour_bundle)
    assert first.pipeline._sessions is second.pipeline._sessions
    assert Engine(colour_bundle, session="onnxruntime-cpu").pipeline._sessions is not first.pipeline._sessions


def test_settings_of_a_frame_do_not_reach_others_in_flight(colour_bundle: Path, scene: Scene) -> None:
    engine = Engine(colour_bundle, parallel=4)
    cases = [
        (Settings(), ("red", "green"), True),
        (Settings(score_threshold=0.92), ("red",), True),
        (Settings(identify=False, inspect=False), ("red", "green"), False),
    ]
    picture = scene("red", "green")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda case: engine.perceive(picture, NO_CONTAINER, case[0]), cases * 20))
    for objects, (_, colours, embedded) in zip(found, cases * 20, strict=True):
        assert len(objects) == len(colours)
        assert (objects.embeddings is not None) == embedded


def test_engines_that_share_batches_find_what_one_alone_finds(colour_bundle: Path, scene: Scene) -> None:
    alone = Engine(colour_bundle)
    engines = [Engine(colour_bundle, batch=8) for _ in range(4)]
    assert len({id(engine.pipeline._sessions) for engine in engines}) == 1
    pictures = [scene("red"), scene("green", "blue"), scene(), scene("blue", "red", "green")] * 3
    with ThreadPoolExecutor(4) as threads:
        found = list(
            threads.map(
                lambda pair: pair[0].perceive(pair[1], NO_CONTAINER, Settings()),
                zip(engines * 3, pictures, strict=True),
            )
        )
    for picture, objects in zip(pictures, found, strict=True):
        expected = alone.perceive(picture, NO_CONTAINER, Settings())
        np.testing.assert_array_equal(objects.boxes, expected.boxes)
        np.testing.assert_array_equal(objects.instance_mask, expected.instance_mask)
        np.testing.assert_allclose(objects.embeddings, expected.embeddings, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_camera_in_a_hurry_does_not_starve_the_other(
    start_node: Callable[..., Any], client: Any, scene: Scene, colour_bundle: Path, tmp_path: Path, batch: int
) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("/cell/right/perception: {ros__parameters: {score_threshold: 0.5, tracking: true}}")
    node = start_node(
        "cameras_node",
        namespace="/cell",
        cameras=["left", "right"],
        images=["/left/image_raw", "/right/image_raw"],
        model=str(colour_bundle),
        batch=batch,
        params_file=str(file),
    )
    objects = {name: client.collect(PerceivedObjects, f"/cell/{name}/objects") for name in ("left", "right")}
    for name in objects:
        client.perception(
            lambda facts: facts["state"] == "active" and facts["objects_subscribers"] == "1",
            f"the {name} node",
            60,
            namespace=f"/cell/{name}",
        )
    left, right = (client.publisher(Image, f"/{name}/image_raw") for name in ("left", "right"))
    large = to_image_message(np.kron(scene("red"), np.ones((8, 8, 1), np.uint8)), "rgb8", Header())
    timer = client.node.create_timer(0.02, lambda: left.publish(large))
    client.wait(lambda: len(objects["left"]) > 3, what="the fast camera's objects")
    for number in range(3):
        header = Header(frame_id="right")
        header.stamp.sec = number + 1
        right.publish(to_image_message(scene("green", "blue"), "rgb8", header))
        found = client.wait(
            lambda header=header: [m for m in objects["right"] if m.header == header],
            30,
            "the slow camera's objects",
        )
        assert len(found[0].objects) == 2
    client.node.destroy_timer(timer)
    for name, threshold, tracking in (("left", -1.0, False), ("right", 0.5, True)):
        asked = {"names": ["score_threshold", "tracking"]}
        one, other = client.call(GetParameters, f"/cell/{name}/perception/get_parameters", **asked).values
        assert (one.double_value, other.bool_value) == (threshold, tracking)
    assert node.stop() == 0, node.output()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "0 cameras"),
        ({"cameras": ["a", "a"]}, "different names"),
        ({"cameras": ["a/b"]}, "no name of a namespace"),
        ({"cameras": ["a", "b"], "images": ["/x"]}, "images has 1 entries for 2 cameras"),
        ({"cameras": ["a", "b"], "camera_info_files": ["/x"]}, "camera_info_files has 1 entries"),
        ({"cameras": ["a"], "params_file": "/nowhere"}, "parameter file /nowhere cannot be read"),
    ],
)
def test_wrong_cameras_end_with_code_2(
    start_node: Callable[..., Any], parameters: dict[str, Any], message: str
) -> None:
    node = start_node("cameras_node", **parameters)
    assert node.wait() == 2
    assert message in node.output()


def test_the_launch_description_names_one_process() -> None:
    (node,) = multi_camera({"cameras": "a, b", "images": "/a/image,/b/image"})
    assert node.parameters["cameras"] == ["a", "b"]
    assert node.parameters["images"] == ["/a/image", "/b/image"]
    with pytest.raises(LaunchError, match="images has 1 entries for 2"):
        multi_camera({"images": "/a"})


@pytest.mark.parametrize("processes", ["shared", "separate"])
def test_each_camera_has_its_calibration_file(processes: str) -> None:
    left, *more = multi_camera({"camera_info_files": "a.yaml, b.yaml", "processes": processes})
    if processes == "shared":
        assert left.parameters["camera_info_files"] == ["a.yaml", "b.yaml"]
    else:
        files = [node.parameters["camera_info_file"] for node in (left, more[0])]
        assert files == ["a.yaml", "b.yaml"]
