"""The package is one thing for pip, colcon and rosdep: same version, same files, same interfaces."""

import importlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import mca_perception

ROOT = Path(__file__).resolve().parents[1]
INTERFACES = ROOT / "ros2_ws" / "src"
PACKAGES = ("vision_msgs", "mca_perception_msgs")

# Fields of the standard vision_msgs 4.1, in order: this is what goes over the wire.
VISION_MSGS = {
    "BoundingBox2D": ["vision_msgs/Pose2D center", "float64 size_x", "float64 size_y"],
    "BoundingBox2DArray": ["std_msgs/Header header", "vision_msgs/BoundingBox2D[] boxes"],
    "BoundingBox3D": ["geometry_msgs/Pose center", "geometry_msgs/Vector3 size"],
    "BoundingBox3DArray": ["std_msgs/Header header", "vision_msgs/BoundingBox3D[] boxes"],
    "Classification": ["std_msgs/Header header", "vision_msgs/ObjectHypothesis[] results"],
    "Detection2D": [
        "std_msgs/Header header",
        "vision_msgs/ObjectHypothesisWithPose[] results",
        "vision_msgs/BoundingBox2D bbox",
        "string id",
    ],
    "Detection2DArray": ["std_msgs/Header header", "vision_msgs/Detection2D[] detections"],
    "Detection3D": [
        "std_msgs/Header header",
        "vision_msgs/ObjectHypothesisWithPose[] results",
        "vision_msgs/BoundingBox3D bbox",
        "string id",
    ],
    "Detection3DArray": ["std_msgs/Header header", "vision_msgs/Detection3D[] detections"],
    "LabelInfo": ["std_msgs/Header header", "vision_msgs/VisionClass[] class_map", "float32 threshold"],
    "ObjectHypothesis": ["string class_id", "float64 score"],
    "ObjectHypothesisWithPose": [
        "vision_msgs/ObjectHypothesis hypothesis",
        "geometry_msgs/PoseWithCovariance pose",
    ],
    "Point2D": ["float64 x", "float64 y"],
    "Pose2D": ["vision_msgs/Point2D position", "float64 theta"],
    "VisionClass": ["uint16 class_id", "string class_name"],
    "VisionInfo": [
        "std_msgs/Header header",
        "string method",
        "string database_location",
        "int32 database_version",
    ],
}


def definition(path: Path) -> list[str]:
    """Fields of an interface file as `type name`, without comments and constants."""
    lines = (line.partition("#")[0].split() for line in path.read_text().splitlines())
    return [" ".join(words) for words in lines if len(words) == 2]


@pytest.fixture(scope="module")
def setup_arguments() -> dict[str, Any]:
    """What setuptools makes of setup.py, pyproject.toml and setup.cfg, read the way colcon reads it."""
    script = (
        "import json\n"
        "from setuptools import Distribution\n"
        "from distutils.core import run_setup\n"
        "dist = run_setup('setup.py', script_args=['--dry-run'], stop_after='config')\n"
        "print(json.dumps({'python_requires': dist.python_requires, 'data_files': dist.data_files,"
        " 'entry_points': dist.entry_points, 'name': dist.get_name()}))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    arguments: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return arguments


def test_one_version_everywhere() -> None:
    manifests = [ROOT / "package.xml", INTERFACES / "mca_perception_msgs" / "package.xml"]
    versions = {ElementTree.parse(path).findtext("version") for path in manifests}
    projects = [ROOT / "pyproject.toml", INTERFACES / "mca_perception_msgs" / "pyproject.toml"]
    versions |= {re.findall(r'^version = "(.+)"$', path.read_text(), re.MULTILINE)[0] for path in projects}
    assert versions == {mca_perception.__version__}


def test_colcon_can_read_the_set_up(setup_arguments: dict[str, Any]) -> None:
    assert setup_arguments["name"] == "mca_perception"
    assert isinstance(setup_arguments["python_requires"], str)


def test_a_ros_package_carries_its_share_files(setup_arguments: dict[str, Any]) -> None:
    files = dict(setup_arguments["data_files"])
    assert files["share/ament_index/resource_index/packages"] == ["resource/mca_perception"]
    installed = {Path(destination, Path(file).name) for destination, names in files.items() for file in names}
    for folder in ("launch", "config", "models"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert Path("share/mca_perception") / path.relative_to(ROOT) in installed


def test_entry_points_exist(setup_arguments: dict[str, Any]) -> None:
    for line in setup_arguments["entry_points"]["console_scripts"]:
        module, _, function = line.split("=")[1].strip().partition(":")
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name == "rclpy":
                pytest.skip("ROS 2 is not installed: make demo")
            raise
        assert callable(getattr(loaded, function))


def test_every_dependency_is_pinned() -> None:
    pins = {
        re.split(r"[=<>;]", line)[0].strip().lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    requirements = [Requirement(text) for text in metadata.requires("mca_perception") or []]
    names = {
        requirement.name.lower().replace("_", "-")
        for requirement in requirements
        if 'extra == "ros' not in str(requirement.marker) and not requirement.name.startswith("types-")
    }
    # An extra may take in another one of this package: its requirements are listed here as well.
    assert names - {"mca-perception"} - pins == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_interface_file_is_built(package: str) -> None:
    folder = INTERFACES / package
    listed = set(re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', (folder / "CMakeLists.txt").read_text()))
    assert listed == {
        str(path.relative_to(folder)) for path in folder.glob("*/*.*") if path.suffix != ".cmake"
    }


def test_vision_msgs_is_compatible_with_the_standard_package() -> None:
    folder = INTERFACES / "vision_msgs" / "msg"
    assert {path.stem: definition(path) for path in folder.glob("*.msg")} == VISION_MSGS


@pytest.mark.parametrize("package", PACKAGES)
def test_installed_messages_are_those_of_the_sources(package: str) -> None:
    module = pytest.importorskip(f"{package}.msg", reason="the messages are not built: make demo")
    for path in (INTERFACES / package / "msg").glob("*.msg"):
        installed = getattr(module, path.stem).get_fields_and_field_types()
        assert list(installed) == [field.split()[1] for field in definition(path)], path.name
