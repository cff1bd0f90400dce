"""The launch files, on machines that have the launch packages. They must do the same as the shared descriptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("launch", reason="the launch packages are not installed; `mca up` is tested instead")
pytest.importorskip("launch_ros")

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_sources import get_launch_description_from_python_launch_file
from launch.utilities import perform_substitutions
from rcl_interfaces.srv import GetParameters

from launch import LaunchContext
from mca_perception.ros.descriptions import LAUNCHES
from mca_perception.ros.node_descriptions import LaunchError
from mca_perception.ros.views import find_executable

pytestmark = pytest.mark.xdist_group("test_launch")

RUN_LAUNCH = """
import sys
from launch import LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch import LaunchDescription

file, *words = sys.argv[1:]
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(file), launch_arguments=[tuple(word.split(":=", 1)) for word in words])]))
sys.exit(service.run())
"""


@pytest.fixture
def description(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "unchanged.xml")
    return lambda name: get_launch_description_from_python_launch_file(
        str(repository / "launch" / f"{name}.launch.py")
    )


def actions_of(description: Any, name: str, arguments: dict[str, str]) -> Sequence[Any]:
    context = LaunchContext()
    context.launch_configurations.update({a.name: a.default for a in LAUNCHES[name][0]} | arguments)
    (start,) = (entry for entry in description.entities if isinstance(entry, OpaqueFunction))
    actions: Sequence[Any] = start.execute(context)
    return actions


@pytest.mark.parametrize("name", LAUNCHES)
def test_all_arguments_are_declared_and_documented(description: Callable[[str], Any], name: str) -> None:
    declared = {
        entry.name: entry for entry in description(name).entities if isinstance(entry, DeclareLaunchArgument)
    }
    assert list(declared) == [argument.name for argument in LAUNCHES[name][0]]
    for argument in LAUNCHES[name][0]:
        action = declared[argument.name]
        assert perform_substitutions(LaunchContext(), action.default_value) == argument.default
        assert action.description.startswith(argument.description)
        assert tuple(action.choices or ()) == argument.choices


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("armbench", {}),
        ("armbench", {"source": "/totes", "viewer": "true"}),
        ("armbench", {"image": "/camera/image_raw"}),
        ("multi_camera", {}),
        ("multi_camera", {"processes": "separate"}),
        ("crisis", {}),
        ("retrieval", {}),
    ],
)
def test_nodes_are_those_of_the_description(
    description: Callable[[str], Any], name: str, arguments: dict[str, str]
) -> None:
    expected = LAUNCHES[name][1](arguments)
    actions = actions_of(description(name), name, arguments)
    assert [action.node_executable for action in actions] == [node.executable for node in expected]
    assert all(action.node_package == "mca_perception" for action in actions)


def test_a_program_to_look_with_that_is_missing_is_named(
    description: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    with pytest.raises(LaunchError, match="apt install"):
        actions_of(description("armbench"), "armbench", {"view": "rviz"})


class Launch:
    """`ros2 launch`'s own service on one of the launch files, as a process."""

    def __init__(self, file: Path, folder: Path, arguments: dict[str, object]) -> None:
        self.log = folder / "launch.log"
        words = [f"{name}:={value}" for name, value in arguments.items()]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN_LAUNCH, str(file), *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "ROS_LOG_DIR": str(folder)},
                start_new_session=True,
            )

    def output(self) -> str:
        return self.log.read_text()

    def node_pid(self, name: str = "perception_node") -> int:
        """Process id of the node that was started last."""
        return int(re.findall(rf"\[{name}-\d+\]: process started with pid \[(\d+)\]", self.output())[-1])


@pytest.fixture
def launch(repository: Path, tmp_path: Path, ros_domain: int) -> Iterator[Callable[..., Launch]]:
    if find_executable("mca_perception", "perception_node") is None:
        pytest.skip("mca_perception is not built with colcon, or its workspace is not sourced")
    started: list[Launch] = []

    def start(name: str, **arguments: object) -> Launch:
        started.append(Launch(repository / "launch" / f"{name}.launch.py", tmp_path, arguments))
        return started[-1]

    yield start
    for process in (running.process for running in started):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
def images(tmp_path: Path, scene: Callable[..., Any]) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), scene("red", "green")[..., ::-1])
    return folder


def test_source_perception_and_viewer_end_together(
    launch: Callable[..., Launch], images: Path, colour_bundle: Path, tmp_path: Path
) -> None:
    done = launch("armbench", source=images, model=colour_bundle, viewer="true", out=tmp_path / "out")
    assert done.process.wait(90) == 0, done.output()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"]["sent"] == summary["frames"]["received"] == 3
    assert "Traceback" not in done.output()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_node_that_is_killed_or_hangs_comes_back_and_an_interrupt_ends_all(
    launch: Callable[..., Launch], client: Any, colour_bundle: Path, number: int
) -> None:
    running = launch("armbench", model=colour_bundle, heartbeat_s=2.0)
    client.perception(lambda facts: facts["state"] == "active", "the node", timeout=60)
    before = running.node_pid()
    os.kill(before, number)
    client.wait(lambda: running.node_pid() != before, 60, "another process")
    client.perception(lambda facts: facts["state"] == "active", "the new node", timeout=60)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0, running.output()
    assert "Traceback" not in running.output()
    client.wait(lambda: not client.node.count_publishers("objects"), 60, "the end of the node")


def test_a_live_launch_goes_on_without_its_viewer_and_reads_a_parameter_file(
    launch: Callable[..., Launch], client: Any, colour_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text("/**/perception: {ros__parameters: {top_k: 2}}")
    running = launch("armbench", model=colour_bundle, viewer="true", params_file=file)
    client.perception(lambda facts: facts["state"] == "active", "the node", timeout=60)
    os.kill(running.node_pid("viewer_node"), signal.SIGKILL)
    client.wait(lambda: "viewer_node-2]: process has died" in running.output(), 30, "the end of the viewer")
    (top_k,) = client.call(GetParameters, "perception/get_parameters", names=["top_k"]).values
    assert top_k.integer_value == 2
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0, running.output()


def test_a_node_that_refuses_to_run_ends_the_launch(
    launch: Callable[..., Launch], colour_bundle: Path
) -> None:
    failed = launch("armbench", model=colour_bundle, score_threshold=7)
    assert failed.process.wait(60) == 1
    assert "score_threshold out of range" in failed.output()
    assert "node perception ended with code 2" in failed.output()
    assert failed.output().count("process started") == 1


def test_cameras_in_processes_of_their_own_come_up_in_order(
    launch: Callable[..., Launch], client: Any, colour_bundle: Path
) -> None:
    running = launch("multi_camera", model=colour_bundle, processes="separate", cameras="left,right")
    for camera in ("left", "right"):
        namespace = f"/perception/{camera}"
        client.perception(lambda facts: facts["state"] == "active", camera, timeout=90, namespace=namespace)
    steps = re.findall(r"/perception/(\w+)/perception (configured|activated)", running.output())
    assert steps[:3] == [("left", "configured"), ("right", "configured"), ("left", "activated")]
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0, running.output()
