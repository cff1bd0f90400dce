"""Finds the ROS 2 to build on: a sourced or installed one, otherwise the wheels from the package index."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from progress import SetupError
from ros_underlay import LISTS

SUPPORTED = ("lyrical", "kilted", "jazzy")  # newest first
RECORDED = ("ROS_DISTRO", "ROS_VERSION", "ROS_PYTHON_VERSION")
REQUIRED = ("rclpy", "sensor_msgs", "diagnostic_msgs", "lifecycle_msgs", "rosidl_generator_py")


def wheels_available() -> bool:
    """Whether there are ROS 2 wheels for this platform."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def sourced_environment(*setup_files: Path) -> dict[str, str]:
    """Source setup files in a shell that knows nothing of ROS and return what they add.

    Args:
        setup_files: shell files, sourced in this order.

    Returns:
        The new entries of path lists and the variables in `RECORDED`.

    Raises:
        SetupError: a file cannot be sourced.
    """
    clean = {name: os.environ[name] for name in ("HOME", "LANG", "PATH") if name in os.environ}
    sources = "".join(f'source "{path}" >&2 && ' for path in setup_files)
    shell = subprocess.run(["bash", "-c", f"{sources}env -0"], env=clean, capture_output=True, check=False)
    if shell.returncode != 0:
        files = ", ".join(map(str, setup_files))
        raise SetupError(f"{files} cannot be sourced: {shell.stderr.decode(errors='replace').strip()}")
    variables = dict(entry.split("=", 1) for entry in shell.stdout.decode().split("\0") if "=" in entry)
    added = {name: variables[name] for name in RECORDED if name in variables}
    for name in LISTS:
        before = clean.get(name, "").split(os.pathsep)
        entries = [entry for entry in variables.get(name, "").split(os.pathsep) if entry not in before]
        if any(entries):
            added[name] = os.pathsep.join(filter(None, entries))
    return added


def python_of(prefix: Path) -> str:
    """Find the interpreter that can import what is needed from an installation.

    Args:
        prefix: installation prefix such as /opt/ros/kilted.

    Returns:
        The system's Python or the one that runs this, in this order.

    Raises:
        SetupError: neither can.
    """
    environment = {**os.environ, **sourced_environment(prefix / "setup.bash")}
    problems = []
    for python in dict.fromkeys(("/usr/bin/python3", sys.executable)):
        command = [python, "-c", f"import {', '.join(REQUIRED)}"]
        try:
            probe = subprocess.run(command, env=environment, capture_output=True, check=False)
        except FileNotFoundError:
            continue
        if probe.returncode == 0:
            return python
        lines = probe.stderr.decode(errors="replace").strip().splitlines()
        reason = next((line for line in lines if re.match(r"\w+Error:", line)), lines[-1])
        problems.append(f"{python}: {reason}")
    raise SetupError(
        f"ROS 2 in {prefix} cannot be used ({'; '.join(problems)}).\n"
        f"  Install what is missing (sudo apt install ros-{prefix.name}-ros-base), "
        "or set MCA_ROS=wheels to leave it aside."
    )


def _installed_prefix() -> Path | None:
    """Return the sourced installation, else the newest supported one below /opt/ros."""
    sourced = os.environ.get("ROS_DISTRO")
    if sourced:
        if sourced not in (*SUPPORTED, "rolling"):
            raise SetupError(
                f"ROS 2 {sourced} is sourced; {', '.join(SUPPORTED)} and rolling are supported.\n"
                "  Use a shell that has not sourced it, with MCA_ROS=wheels: the set-up brings its own ROS 2."
            )
        for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
            if Path(entry, "share/rclpy/package.xml").is_file() and Path(entry, "setup.bash").is_file():
                return Path(entry)
    root = Path(os.environ.get("MCA_ROS_ROOT", "/opt/ros"))
    return next((root / distro for distro in SUPPORTED if (root / distro / "setup.bash").is_file()), None)


def find_ros() -> Path | None:
    """Choose the ROS 2 to use. MCA_ROS=wheels, or MCA_ROS=<prefix>, overrules the search.

    Returns:
        The prefix of an installation, or None for the wheels.

    Raises:
        SetupError: what was asked for, or what is sourced, cannot be used.
    """
    wanted = os.environ.get("MCA_ROS", "auto")
    if wanted == "auto":
        return _installed_prefix()
    if wanted == "wheels":
        if "ROS_DISTRO" in os.environ:
            raise SetupError("MCA_ROS=wheels, but ROS 2 is sourced and would mix in: use a fresh shell.")
        return None
    if not Path(wanted, "setup.bash").is_file():
        raise SetupError(f"MCA_ROS={wanted}: neither auto, nor wheels, nor a folder with a setup.bash in it.")
    return Path(wanted)
