"""The set-up: which ROS 2 it takes, what it skips, how it explains failures. No test uses the network."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import progress
import pytest
import ros
import ros_underlay
import steps
from progress import SetupError

FOLDER = Path(steps.__file__).parent


@pytest.fixture(autouse=True)
def no_ros(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without ROS 2, whatever this one has."""
    for name in ("ROS_DISTRO", "AMENT_PREFIX_PATH", "MCA_ROS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MCA_ROS_ROOT", str(tmp_path / "opt"))


def install_ros(root: Path, distro: str) -> Path:
    """Make something that looks like a ROS 2 installation."""
    prefix = root / distro
    (prefix / "share" / "rclpy").mkdir(parents=True)
    (prefix / "share" / "rclpy" / "package.xml").touch()
    (prefix / "setup.bash").write_text(
        f"export ROS_DISTRO={distro} AMENT_PREFIX_PATH={prefix} PATH={prefix}/bin:$PATH UNRELATED=1\n"
    )
    return prefix


@pytest.fixture
def repository_copy(tmp_path: Path) -> Path:
    """A small repository whose `.venv` seems to be there."""
    root = tmp_path / "repository"
    for name in ("setup.py", "constraints.txt", ".venv/bin/python"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "pyproject.toml").write_text("[project]\nname = 'x'\n\n[tool.ruff]\nline-length = 110\n")
    for package in steps.MESSAGE_PACKAGES:
        (root / "ros2_ws" / "src" / package / "msg").mkdir(parents=True)
        (root / "ros2_ws" / "src" / package / "msg" / "A.msg").write_text("uint8 a\n")
    return root


# -- which ROS 2 -----------------------------------------------------------------------------------


def test_without_ros_the_wheels_are_taken() -> None:
    assert ros.find_ros() is None


def test_the_newest_supported_installation_is_taken(tmp_path: Path) -> None:
    for distro in ("humble", "jazzy", "kilted"):
        install_ros(tmp_path / "opt", distro)
    assert ros.find_ros() == tmp_path / "opt" / "kilted"


def test_a_sourced_installation_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_ros(tmp_path / "opt", "kilted")
    sourced = install_ros(tmp_path / "home", "jazzy")
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}/overlay:{sourced}")
    assert ros.find_ros() == sourced


def test_wheels_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_ros(tmp_path / "opt", "kilted")
    monkeypatch.setenv("MCA_ROS", "wheels")
    assert ros.find_ros() is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MCA_ROS": "/nowhere"}, "MCA_ROS=/nowhere"),
        ({"MCA_ROS": "wheels", "ROS_DISTRO": "jazzy"}, "fresh shell"),
        ({"ROS_DISTRO": "humble"}, "humble is sourced"),
    ],
)
def test_unusable_choices_are_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=message):
        ros.find_ros()


def test_sourcing_returns_only_what_ros_adds(tmp_path: Path) -> None:
    prefix = install_ros(tmp_path, "kilted")
    assert ros.sourced_environment(prefix / "setup.bash") == {
        "ROS_DISTRO": "kilted",
        "AMENT_PREFIX_PATH": str(prefix),
        "PATH": f"{prefix}/bin",
    }


def test_a_broken_setup_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "setup.bash").write_text("echo no such thing >&2; return 3\n")
    with pytest.raises(SetupError, match=r"setup\.bash cannot be sourced: no such thing"):
        ros.sourced_environment(tmp_path / "setup.bash")


def test_an_installation_without_rclpy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = install_ros(tmp_path, "kilted")
    monkeypatch.setattr(ros, "REQUIRED", ("no_such_module",))
    with pytest.raises(SetupError, match="ros-kilted-ros-base"):
        ros.python_of(prefix)


# -- environment of an installed ROS 2 -------------------------------------------------------------


def test_recorded_paths_go_in_front_once() -> None:
    merged = ros_underlay.merge(
        {"PATH": "/ros/bin", "PYTHONPATH": "/ros/python", "ROS_DISTRO": "kilted"},
        {"PATH": "/usr/bin:/ros/bin", "ROS_DISTRO": "jazzy", "HOME": "/home"},
    )
    assert merged == {
        "PATH": "/ros/bin:/usr/bin",
        "PYTHONPATH": "/ros/python",
        "ROS_DISTRO": "jazzy",
        "HOME": "/home",
    }


def test_python_starts_again_inside_the_recorded_environment(tmp_path: Path) -> None:
    (tmp_path / "ros_underlay.py").write_text((FOLDER / "ros_underlay.py").read_text())
    (tmp_path / "ros_underlay.json").write_text(json.dumps({"LD_LIBRARY_PATH": "/ros/lib"}))
    script = "import ros_underlay, os, sys; print(os.environ['LD_LIBRARY_PATH'], sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": "/mine"}
    command = [sys.executable, "-c", script, "an argument"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("/ros/lib:/mine"), run.stderr
    assert run.stdout.rstrip().endswith("['an argument']")


# -- constraints -----------------------------------------------------------------------------------


def test_constraints_stay_with_numpy_2() -> None:
    text = 'numpy==2.4.6; python_version >= "3.11"\nrich==15.0.0\n'
    assert steps.constraints_for("2.3.1", text) == text


def test_constraints_give_way_to_a_ros_with_numpy_1() -> None:
    text = 'numpy==2.4.6; python_version >= "3.11"\nopencv-python-headless==5.0.0.93\nrich==15.0.0\n'
    fitted = steps.constraints_for("1.26.4", text).splitlines()
    assert fitted == ["opencv-python-headless<4.12", "rich==15.0.0", "numpy<2"]


# -- what is done again ----------------------------------------------------------------------------


def finished(root: Path, profile: str, *extras: str) -> steps.Setup:
    """Record a finished set-up with these extras and return a new one for the profile."""
    setup = steps.Setup(root, profile)
    setup._save(
        ros="wheels",
        packages={"key": setup.packages_key, "extras": list(extras)},
        messages=setup.messages_key,
    )
    return steps.Setup(root, profile)


def test_a_finished_set_up_runs_nothing(repository_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a command was run"))
    finished(repository_copy, "demo", "ros").run()


def test_more_extras_serve_a_smaller_profile(repository_copy: Path) -> None:
    assert finished(repository_copy, "demo", "dev", "ros", "train")._packages_current()
    assert not finished(repository_copy, "test", "ros")._packages_current()


def test_changed_tool_settings_install_nothing(repository_copy: Path) -> None:
    setup = finished(repository_copy, "demo", "ros")
    with (repository_copy / "pyproject.toml").open("a") as file:
        file.write("[tool.mypy]\nstrict = true\n")
    assert setup._packages_current()


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "constraints.txt"])
def test_changed_requirements_install_again(repository_copy: Path, name: str) -> None:
    setup = finished(repository_copy, "demo", "ros")
    (repository_copy / name).write_text("[project]\nname = 'y'\n")
    assert not setup._packages_current()
    assert setup._messages_current()


@pytest.mark.skipif(not ros.wheels_available(), reason="there are no ROS 2 wheels for this platform")
def test_changed_messages_are_built_again(repository_copy: Path) -> None:
    setup = finished(repository_copy, "demo", "ros")
    (repository_copy / "ros2_ws/src/vision_msgs/msg/A.msg").write_text("uint16 a\n")
    assert not setup._messages_current()
    assert setup._packages_current()


def test_another_ros_than_before_is_refused(repository_copy: Path, tmp_path: Path) -> None:
    finished(repository_copy, "demo", "ros")
    install_ros(tmp_path / "opt", "kilted")
    with pytest.raises(SetupError, match=r"make clean.*MCA_ROS=wheels"):
        steps.Setup(repository_copy, "demo")


def test_a_lost_environment_is_made_again(repository_copy: Path) -> None:
    setup = finished(repository_copy, "demo", "ros")
    setup.python.unlink()
    assert steps.Setup(repository_copy, "demo").state == {}


def test_a_damaged_record_is_made_again(repository_copy: Path) -> None:
    setup = finished(repository_copy, "demo", "ros")
    setup.record.write_text("{")
    assert steps.Setup(repository_copy, "demo").state == {}


# -- failures --------------------------------------------------------------------------------------


def test_a_full_disk_is_told_before_anything_is_done(
    repository_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(steps.FREE_GB, "demo", 1e9)
    with pytest.raises(SetupError, match="GB are needed"):
        steps.Setup(repository_copy, "demo").run()


@pytest.mark.skipif(not ros.wheels_available(), reason="there are no ROS 2 wheels for this platform")
def test_a_missing_compiler_is_told_before_anything_is_done(
    repository_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(repository_copy))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SetupError, match="apt install g"):
        steps.Setup(repository_copy, "demo").run()


def test_a_command_leaves_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "a.log"
    progress.run("saying hello", [sys.executable, "-c", "print('hello')"], log=log, environment=os.environ)
    assert log.read_text() == "hello\n"
    assert "saying hello: done" in capsys.readouterr().out


def test_a_failed_command_is_explained(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    script = "print('write failed: No space left on device'); raise SystemExit(1)"
    with pytest.raises(SetupError) as failure:
        progress.run("copying", [sys.executable, "-c", script], log=log, environment=os.environ)
    message = str(failure.value)
    assert "copying failed" in message
    assert "No space left on device" in message
    assert str(log) in message
    assert message.endswith("Free some disk space and run the same command again.")


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("Temporary failure in name resolution", "PIP_INDEX_URL"),
        ("ERROR: No matching distribution found for rclpy", "PYTHON=python3.12"),
        ("fatal error: Python.h: No such file", "python3-dev"),
        ("No CMAKE_CXX_COMPILER could be found", "g++"),
        ("The virtual environment was not created: ensurepip is not available", "python3-venv"),
        ("something else", "finished steps are kept"),
    ],
)
def test_remedies(output: str, remedy: str) -> None:
    assert remedy in progress.remedy_for(output)


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"(?s)3\.9 is too old.*PYTHON=python3\.12"):
        runpy.run_path(str(FOLDER / "__main__.py"), run_name="__main__")


def test_an_unknown_profile_is_a_usage_error() -> None:
    run = subprocess.run([sys.executable, FOLDER, "everything"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.startswith("usage:")
