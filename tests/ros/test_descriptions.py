from pathlib import Path

import pytest

from mca_perception.ros.descriptions import (
    LAUNCHES,
    LaunchError,
    armbench,
    multi_camera,
    resolve_arguments,
)
from mca_perception.ros.node_descriptions import arguments_table


def test_without_arguments_only_the_perception_node_runs() -> None:
    (node,) = armbench({})
    assert (node.executable, node.namespace, node.name) == ("perception_node", "/perception", "perception")
    assert node.parameters["frame_policy"] == "freshest"
    assert node.remappings == ()


def test_a_running_camera_is_remapped_in_both_transports() -> None:
    (node,) = armbench({"image": "/camera/image_raw", "namespace": "left"})
    assert node.namespace == "/left"
    assert node.remappings == (
        ("image", "/camera/image_raw"),
        ("image/compressed", "/camera/image_raw/compressed"),
        ("camera_info", "/camera/camera_info"),
    )


def test_depth_and_camera_info_can_be_named() -> None:
    (node,) = armbench({"image": "/cam/image", "depth": "/cam/depth", "camera_info": "/other/info"})
    assert dict(node.remappings)["camera_info"] == "/other/info"
    assert dict(node.remappings)["depth"] == "/cam/depth"
    (node,) = armbench({"camera_info": "/info", "camera_info_file": "tote.yaml", "tracking": "true"})
    assert node.remappings == (("camera_info", "/info"),)
    assert node.parameters["camera_info_file"] == "tote.yaml"
    assert node.parameters["tracking"] is True


@pytest.mark.parametrize("launch", LAUNCHES)
def test_nodes_are_started_again_unless_that_is_switched_off(launch: str) -> None:
    describe = LAUNCHES[launch][1]
    (node, *_) = describe({"heartbeat_s": "3"})
    assert (node.respawn, node.parameters["heartbeat_s"]) == (True, 3.0)
    (node, *_) = describe({"respawn": "false"})
    assert (node.respawn, node.parameters["heartbeat_s"]) == (False, 0.0)  # nobody would start it again


@pytest.mark.parametrize("arguments", [{"tasks": "container"}, {"tasks": "separate", "gallery": "g"}])
def test_so_are_nodes_per_task(arguments: dict[str, str]) -> None:
    *nodes, last = armbench(arguments)
    for node in [*nodes, last] if last.executable != "manager_node" else nodes:
        assert (node.respawn, node.parameters["heartbeat_s"]) == (True, 15.0)


@pytest.mark.parametrize(
    ("launch", "node", "argument"),
    [
        ("armbench", "perception", "session"),
        ("multi_camera", "perception", "session"),
        ("armbench", "cameras", "parallel_frames"),
        ("retrieval", "retrieval", "back_end"),
    ],
)
def test_arguments_offer_what_the_parameters_take(launch: str, node: str, argument: str) -> None:
    pytest.importorskip("rclpy")
    from mca_perception.ros.parameters import load_schema

    declared = {entry.name: entry for entry in LAUNCHES[launch][0]}[argument]
    spec = load_schema(node)[argument]
    assert declared.choices == spec.choices
    assert declared.default == str(spec.default)


@pytest.mark.parametrize("asked_for", ["true", "false"])
def test_objects_are_judged_for_defects_when_that_is_asked_for(asked_for: str) -> None:
    (node,) = armbench({"defects": asked_for})
    assert node.parameters["inspection"] is (asked_for == "true")


@pytest.mark.parametrize(("source", "policy"), [("/dev/video0", "freshest"), ("totes", "every_frame")])
def test_the_policy_follows_the_source(source: str, policy: str) -> None:
    perception, player = armbench({"source": source})
    assert perception.parameters["frame_policy"] == policy
    assert player.ends_launch
    assert player.parameters["wait_for_consumers"] == 0


def test_the_viewer_ends_the_launch_and_is_waited_for() -> None:
    _, player, viewer = armbench({"source": "totes", "viewer": "true", "out": "results"})
    assert (player.ends_launch, viewer.ends_launch) == (False, True)
    assert player.parameters["wait_for_consumers"] == 1
    assert viewer.parameters == {"out": "results", "truth": "totes"}
    assert not viewer.optional


@pytest.mark.parametrize(
    "arguments", [{"image": "/cam"}, {"source": "/dev/video0"}, {"source": "totes", "loop": "true"}]
)
def test_where_images_have_no_end_the_viewer_waits_for_ever_and_perception_goes_on_without_it(
    arguments: dict[str, str],
) -> None:
    *others, viewer = armbench({**arguments, "viewer": "true"})
    assert (viewer.ends_launch, viewer.optional) == (False, True)
    assert viewer.parameters["idle_timeout_s"] == 0.0
    assert [node.ends_launch for node in others if node.name == "source"] == [True] * ("source" in arguments)


def test_a_camera_of_which_some_images_are_wanted_has_an_end() -> None:
    _, player, viewer = armbench({"source": "/dev/video0", "max_frames": "40", "viewer": "true"})
    assert (player.ends_launch, viewer.ends_launch, viewer.optional) == (False, True, False)
    assert "idle_timeout_s" not in viewer.parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sauce": "totes"}, "does not exist"),
        ({"encoding": "gif"}, "choose one of compressed, raw"),
        ({"rate_hz": "fast", "source": "totes"}, "must be a number"),
        ({"source": "totes", "image": "/camera"}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        armbench(arguments)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_defaults_are_valid_choices(launch: str) -> None:
    resolve_arguments(LAUNCHES[launch][0], {a.name: a.default for a in LAUNCHES[launch][0]})


def test_parameters_exist_in_the_schema() -> None:
    pytest.importorskip("rclpy")
    from mca_perception.ros.parameters import load_schema

    cameras = {"cameras": "left,right", "images": "/left/image_raw,/right/image_raw"}
    for node in (
        *armbench({"source": "totes", "viewer": "true", "view": "web"}),
        *armbench({"image": "/cam", "viewer": "true"}),
        *multi_camera(cameras),
        *multi_camera({**cameras, "processes": "separate"}),
    ):
        schema = load_schema(node.name)
        for name, value in node.parameters.items():
            assert schema[name].problem(value) == ""


def test_cameras_in_processes_of_their_own_are_brought_up_in_order() -> None:
    left, right, manager = multi_camera(
        {"processes": "separate", "namespace": "cell", "cameras": "left,right", "images": "/a/raw,/b/raw"}
    )
    assert [node.full_name for node in (left, right)] == ["/cell/left/perception", "/cell/right/perception"]
    assert manager.parameters["nodes"] == ["/cell/left/perception", "/cell/right/perception"]
    for node, topic in ((left, "/a/raw"), (right, "/b/raw")):
        assert node.parameters["autostart"] is False
        assert ("image", topic) in node.remappings
        assert node.respawn


@pytest.mark.parametrize(
    ("launch", "page"),
    [("armbench", "ros"), ("multi_camera", "ros"), ("crisis", "crisis"), ("retrieval", "retrieval")],
)
def test_documentation_holds_the_arguments(repository: Path, launch: str, page: str) -> None:
    table = arguments_table(LAUNCHES[launch][0])
    text = (repository / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert table in text, f"docs/{page}.md is stale; the arguments of {launch}:\n{table}"
