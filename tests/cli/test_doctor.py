"""`mca doctor`: the report is complete, and broken parts are told, not fatal."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mca_perception.cli import environment
from mca_perception.cli.environment import (
    FEATURES,
    Feature,
    FeatureState,
    ModelState,
    Report,
    RosState,
    feature_state,
)
from mca_perception.cli.main import app

RUNNER = CliRunner()
SOUND_MODEL = ModelState("models/nano", "nano", "0123456789abcdef")
SOUND_ROS = RosState("kilted", "/opt/ros/kilted", "rmw_fastrtps_cpp")
BARE = Feature("test", ("json",), "pip install it")


@pytest.fixture(scope="module")
def json_run() -> Result:
    """One run of `mca doctor --json`."""
    return RUNNER.invoke(app, ["doctor", "--json"])


def test_json_report_names_what_it_found(json_run: Result) -> None:
    report = json.loads(json_run.output)
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["packages"]["numpy"]
    assert "CPUExecutionProvider" in report["providers"]
    assert re.search(r"^(tensorrt|onnxruntime-c|openvino)", report["sessions"])
    assert set(report["features"]) == set(FEATURES)


def test_exit_code_tells_whether_the_nodes_can_run(json_run: Result) -> None:
    features = json.loads(json_run.output)["features"]
    assert json_run.exit_code == (0 if features["library"]["ready"] and features["nodes"]["ready"] else 1)


def test_text_report_tells_every_feature(json_run: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = json.loads(json_run.output)
    fields["ros"], fields["model"] = RosState(**fields["ros"]), ModelState(**fields["model"])
    fields["features"] = {name: FeatureState(**state) for name, state in fields["features"].items()}
    monkeypatch.setattr(environment, "examine", lambda: Report(**fields))
    output = RUNNER.invoke(app, ["doctor"]).output
    for name in (*FEATURES, "Python", "Models run in", "ROS 2", "Messages", "Model"):
        assert name in output


@pytest.mark.parametrize(
    ("feature", "ros", "model", "missing", "install"),
    [
        (BARE, SOUND_ROS, SOUND_MODEL, [], None),
        (replace(BARE, modules=("no_such_module",)), SOUND_ROS, SOUND_MODEL, ["no_such_module"], "pip"),
        (
            replace(BARE, needs_model=True),
            SOUND_ROS,
            ModelState(problem="x"),
            ["models/nano"],
            "git checkout",
        ),
        (replace(BARE, needs_gpu=True), SOUND_ROS, SOUND_MODEL, ["a GPU provider of onnxruntime"], "pip"),
    ],
)
def test_feature_state(
    feature: Feature, ros: RosState, model: ModelState, missing: list[str], install: str | None
) -> None:
    state = feature_state(feature, providers=["CPUExecutionProvider"], ros=ros, model=model)
    assert state.missing == missing
    assert state.ready == (not missing)
    assert (install in (state.install or "")) if install else state.install is None


def test_installed_but_broken_ros_is_missing() -> None:
    pytest.importorskip("rclpy")
    broken = RosState("kilted", "/opt/ros/kilted", problem="ImportError: librcl.so")
    state = feature_state(FEATURES["nodes"], providers=[], ros=broken, model=SOUND_MODEL)
    assert not state.ready
    assert "librcl.so" in state.missing[-1]


def test_ros_state_finds_middleware_and_messages() -> None:
    pytest.importorskip("rclpy")
    state = environment.ros_state()
    assert state.problem is None
    assert state.rmw is not None
    assert state.rmw.startswith("rmw_")
    assert set(state.messages) == {"vision_msgs", "mca_perception_msgs"}


def test_ros_state_reports_a_broken_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "lib" / "python" / "rclpy"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('librcl.so: cannot open')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "rclpy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(broken.parent)
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    state = environment.ros_state()
    assert state.problem == "ImportError: librcl.so: cannot open"
    assert state.source == str(tmp_path)


def test_model_state_tells_a_missing_bundle(tmp_path: Path) -> None:
    state = environment.model_state("models/none")
    assert state.path is None
    assert "models/none is not installed" in (state.problem or "")


def test_model_state_finds_a_changed_file(tmp_path: Path, repository: Path) -> None:
    if not (repository / "models/nano/manifest.json").is_file():
        pytest.skip("models/nano is not there: mca train recipes/")
    bundle = shutil.copytree(repository / "models/nano", tmp_path / "nano")
    assert environment.model_state(str(bundle)).problem is None
    graph = next(bundle.glob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert graph.name in (environment.model_state(str(bundle)).problem or "")
