"""The launch file, on machines that have the launch packages. It must say the same as the shared description."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("launch", reason="the launch packages are not installed; `mca up` is tested instead")
pytest.importorskip("launch_ros")

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_sources import get_launch_description_from_python_launch_file
from launch.utilities import perform_substitutions

from launch import LaunchContext
from mca_perception.ros.descriptions import ARMBENCH_ARGUMENTS, armbench


@pytest.fixture
def description(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "unchanged.xml")
    return get_launch_description_from_python_launch_file(str(repository / "launch" / "armbench.launch.py"))


def test_all_arguments_are_declared_and_documented(description: Any) -> None:
    declared = {
        entry.name: entry for entry in description.entities if isinstance(entry, DeclareLaunchArgument)
    }
    assert list(declared) == [argument.name for argument in ARMBENCH_ARGUMENTS]
    for argument in ARMBENCH_ARGUMENTS:
        action = declared[argument.name]
        assert perform_substitutions(LaunchContext(), action.default_value) == argument.default
        assert action.description.startswith(argument.description)
        assert tuple(action.choices or ()) == argument.choices


@pytest.mark.parametrize(
    "arguments", [{}, {"source": "/totes", "viewer": "true"}, {"image": "/camera/image_raw"}]
)
def test_nodes_are_those_of_the_description(description: Any, arguments: dict[str, str]) -> None:
    context = LaunchContext()
    context.launch_configurations.update({a.name: a.default for a in ARMBENCH_ARGUMENTS} | arguments)
    (start,) = (entry for entry in description.entities if isinstance(entry, OpaqueFunction))
    expected = armbench(arguments)
    actions = start.execute(context)
    assert [action.node_executable for action in actions] == [node.executable for node in expected]
    assert all(action.node_package == "mca_perception" for action in actions)
