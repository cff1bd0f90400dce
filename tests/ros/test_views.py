"""Programs to look with: what is started for which view, and what is said where one is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mca_perception.ros.descriptions import armbench, multi_camera
from mca_perception.ros.node_descriptions import LaunchError
from mca_perception.ros.processes import node_command
from mca_perception.ros.views import VIEWS, check_installed, view_nodes


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ROS prefix with programs to look with."""
    for package in ("rviz2", "foxglove_bridge"):
        program = tmp_path / "lib" / package / package
        program.parent.mkdir(parents=True)
        program.touch(mode=0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    return tmp_path


@pytest.mark.parametrize(
    ("view", "executables"),
    [("none", []), ("rviz", ["rviz2"] * 2), ("foxglove", ["foxglove_bridge"]), ("web", ["web_view_node"])],
)
def test_what_is_started(view: str, executables: list[str]) -> None:
    assert view in VIEWS
    nodes = multi_camera({"view": view, "view_port": "9000"})
    assert [node.executable for node in nodes[1:]] == executables
    for node in nodes[1:]:
        assert node.parameters.get("port", 9000) == 9000
        assert not node.ends_launch  # closing the window does not stop the robot


def test_rviz_looks_at_the_namespace_and_frame(workspace: Path, tmp_path: Path) -> None:
    _, _, rviz = armbench({"view": "rviz", "namespace": "left", "source": "totes"})
    command = node_command(rviz, tmp_path / "p.yaml")
    assert command[0] == str(workspace / "lib/rviz2/rviz2")
    assert Path(command[command.index("-d") + 1]).name == "perception.rviz"
    assert command[command.index("-f") + 1] == "camera"  # that of the source
    assert command.index("-f") < command.index("--ros-args")
    assert "/perception/overlay/compressed:=/left/overlay/compressed" in command
    (rviz,) = view_nodes("rviz", ["/perception"])
    assert rviz.remappings == ()
    assert "-f" not in rviz.arguments


def test_installed_programs_are_accepted(workspace: Path) -> None:
    for view in ("none", "rviz", "foxglove"):
        check_installed(armbench({"view": view}))


@pytest.mark.parametrize(
    ("view", "remedy"),
    [
        ("rviz", "apt install ros-.*-rviz2.* or choose view:=web"),
        ("foxglove", "apt install ros-.*-foxglove-bridge"),
        ("web", r"pip install 'mca_perception\[foxglove\]'"),
    ],
)
def test_missing_ones_are_refused_with_a_remedy(
    view: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=remedy):
        check_installed(armbench({"view": view}))


def test_only_ports_are_taken() -> None:
    with pytest.raises(LaunchError, match="view_port is 'web', it must be a number"):
        armbench({"view": "web", "view_port": "web"})
