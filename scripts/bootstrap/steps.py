"""The steps of the set-up: environment, Python packages, ROS messages, reference implementations for tests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import oracles
from progress import SetupError, run, say
from ros import find_ros, python_of, sourced_environment, wheels_available

PROFILES = {
    "colcon": ("ros",),
    "demo": ("ros",),
    "test": ("backbones", "dev", "foxglove", "lora", "oracles", "retrieval", "ros", "train"),
    "setup": (
        *("augmentation", "backbones", "crisis", "dev", "foxglove", "lora", "openvino", "oracles", "qdrant"),
        *("ray", "retrieval", "ros", "tracking", "train", "triton"),
    ),
}
FREE_GB = {"colcon": 2.0, "demo": 1.5, "test": 8.0, "setup": 9.0}
NEWEST_WHEEL_PYTHON = (3, 14)
MESSAGE_PACKAGES = ("vision_msgs", "mca_perception_msgs")
OLDEST_CMAKE = (3, 21)
RUN_COLCON = "import sys; from colcon_core.command import main; sys.exit(main())"


def digest(parts: Iterable[str | Path]) -> str:
    """Hash texts and the contents of files to a short key."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def constraints_for(numpy_version: str, text: str) -> str:
    """Fit the constraints to a ROS 2 whose messages were compiled against an older NumPy.

    Args:
        numpy_version: version of the NumPy that ROS 2 was built with.
        text: content of constraints.txt.

    Returns:
        The text, with the pins that need NumPy 2 loosened when ROS 2 has NumPy 1.
    """
    if int(numpy_version.split(".")[0]) >= 2:
        return text
    text = re.sub(r"^numpy==.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^opencv-python-headless==.*$", "opencv-python-headless<4.12", text, flags=re.MULTILINE)
    return f"{text}numpy<2\n"


def cmake_is_usable() -> bool:
    """Whether a CMake new enough for the messages is on PATH."""
    if shutil.which("cmake") is None:
        return False
    text = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", text)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_CMAKE


def compiler() -> str | None:
    """Return the path of a C++ compiler, or None."""
    candidates = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return next(filter(None, map(shutil.which, candidates)), None)


class Setup:
    """Brings `.venv` to what a profile needs.

    Args:
        root: root folder of the repository.
        profile: key of `PROFILES`.

    Raises:
        SetupError: the ROS 2 that is asked for, or that `.venv` was made for, cannot be used.
    """

    def __init__(self, root: Path, profile: str) -> None:
        self.root = root
        self.profile = profile
        self.workspace = root / "ros2_ws"
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.record = self.venv / "mca-setup.json"
        self.state = self._read_state()
        self.ros_prefix = find_ros()
        self.ros_name = str(self.ros_prefix or "wheels")
        made_for = self.state.get("ros", self.ros_name)
        if made_for != self.ros_name:
            raise SetupError(
                f".venv was made for ROS 2 from {made_for}, but now {self.ros_name} would be used.\n"
                f"  Run `make clean` to start again with {self.ros_name}, or set MCA_ROS={made_for} to stay."
            )

    def run(self) -> None:
        """Run every step that is not current.

        Raises:
            SetupError: a step cannot be done.
        """
        steps = [
            (self._make_environment, "ros" in self.state, "Environment .venv"),
            (self._install_packages, self._packages_current(), " + ".join(["Python packages", *self.extras])),
            (self._build_messages, self._messages_current(), "ROS messages (compiled once, some minutes)"),
            (self._install_oracles, self._oracles_current(), "Reference implementations for tests"),
        ]
        todo = [(step, title) for step, current, title in steps if not current]
        if not todo:
            return
        self._check_machine()
        started = time.monotonic()
        say(f"Setting up for `{self.profile}`, ROS 2 from {self.ros_name}")
        for number, (step, title) in enumerate(todo, start=1):
            say(f"[{number}/{len(todo)}] {title}")
            step()
        say(f"Set-up finished in {time.monotonic() - started:.0f} s. It runs again when something changes.")

    # -- what is there -------------------------------------------------------------------------------------

    def _read_state(self) -> dict[str, Any]:
        if not self.python.exists():
            return {}
        try:
            state = json.loads(self.record.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return state if isinstance(state, dict) else {}

    def _save(self, **entries: object) -> None:
        self.state.update(entries)
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=2) + "\n")
        temporary.replace(self.record)

    @property
    def extras(self) -> list[str]:
        """Extras of the profile; ROS 2 comes from the installation where there is one."""
        return [extra for extra in PROFILES[self.profile] if extra != "ros" or self.ros_prefix is None]

    @property
    def packages_key(self) -> str:
        """Key of everything that decides which Python packages are installed."""
        text = (self.root / "pyproject.toml").read_text()
        project = text.partition("\n[tool.")[0]  # settings of tools install nothing
        files = [self.root / name for name in ("setup.py", "constraints.txt")]
        return digest([project, *files, self.ros_name, str(self.root)])

    @property
    def messages_key(self) -> str:
        """Key of everything that decides what the message packages compile to."""
        folders = (self.workspace / "cmake", *(self.workspace / "src" / name for name in MESSAGE_PACKAGES))
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [str(path.relative_to(self.workspace)) for path in files]
        return digest([*files, *names, self.ros_name])

    @property
    def oracles_key(self) -> str:
        """Key of everything that decides which reference implementations are installed, and how."""
        files = sorted((self.root / oracles.SOURCES).glob("*.*"))
        return digest([self.packages_key, *oracles.WITHOUT_THEIR_REQUIREMENTS, *files])

    def _packages_current(self) -> bool:
        done = self.state.get("packages", {})
        return done.get("key") == self.packages_key and set(self.extras) <= set(done.get("extras", ()))

    def _messages_current(self) -> bool:
        return not self._messages_possible() or self.state.get("messages") == self.messages_key

    def _oracles_current(self) -> bool:
        return "oracles" not in self.extras or self.state.get("oracles") == self.oracles_key

    def _messages_possible(self) -> bool:
        return self.ros_prefix is not None or wheels_available()

    def _check_machine(self) -> None:
        """Find what would stop the set-up half way.

        Raises:
            SetupError: something is missing; the message says what to do.
        """
        if not self._messages_possible() and self.profile in ("colcon", "demo"):
            raise SetupError(
                "there is no ROS 2 here, and ROS 2 wheels exist for x86-64 Linux only.\n"
                "  Install ROS 2 Kilted or Jazzy (it goes to /opt/ros), then run `make demo` again."
            )
        if self.ros_prefix is None and wheels_available() and sys.version_info[:2] > NEWEST_WHEEL_PYTHON:
            raise SetupError(
                f"there are no ROS 2 wheels for Python {sys.version_info[0]}.{sys.version_info[1]} yet.\n"
                "  Name an older one: make demo PYTHON=python3.12"
            )
        free, needed = shutil.disk_usage(self.root).free / 1e9, FREE_GB[self.profile]
        if not self._packages_current() and free < needed:
            raise SetupError(f"{free:.1f} GB are free in {self.root}, {needed} GB are needed: free some.")
        if not self._messages_current() and not compiler():
            raise SetupError("the ROS messages need a C++ compiler: sudo apt install g++")

    # -- environment and packages --------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        """Return the variables for commands that run inside `.venv`."""
        environment = dict(os.environ)
        if environment.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None):
            environment.pop("LD_LIBRARY_PATH", None)  # of another environment with ROS 2 wheels
        if self.ros_prefix:
            environment.update(sourced_environment(self.ros_prefix / "setup.bash"))
        environment["PATH"] = os.pathsep.join([str(self.venv / "bin"), os.environ.get("PATH", os.defpath)])
        environment.update(VIRTUAL_ENV=str(self.venv), PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
        return environment

    def _run(self, label: str, *command: str, cwd: Path | None = None) -> None:
        log = self.venv / "setup-logs" / f"{label.replace(' ', '-')}.log"
        run(label, command, log=log, environment=self._environment(), cwd=cwd or self.root)

    def _pip(self, label: str, *arguments: str) -> None:
        self._run(label, str(self.python), "-m", "pip", "install", "--progress-bar", "off", *arguments)

    def _ask(self, python: str | Path, script: str) -> str:
        """Run a line of Python inside the environment and return what it prints."""
        command = [str(python), "-c", script]
        answer = subprocess.run(command, capture_output=True, text=True, env=self._environment(), check=False)
        if answer.returncode != 0:
            raise SetupError(f"{python} failed at `{script}`:\n{answer.stderr}\n  `make clean` starts again.")
        return answer.stdout.strip()

    def _succeeds(self, script: str) -> bool:
        """Whether the environment's Python runs a line without an error."""
        command = [str(self.python), "-c", script]
        return (
            subprocess.run(command, capture_output=True, env=self._environment(), check=False).returncode == 0
        )

    def _site_packages(self) -> Path:
        return Path(self._ask(self.python, "import sysconfig; print(sysconfig.get_path('purelib'))"))

    def _make_environment(self) -> None:
        if not self._has_pip():
            python = python_of(self.ros_prefix) if self.ros_prefix else sys.executable
            options = ["--system-site-packages"] if self.ros_prefix else []
            log = self.root / ".venv-setup.log"  # not inside: --clear empties the folder
            command = [python, "-m", "venv", "--clear", *options, str(self.venv)]
            run("creating it", command, log=log, environment=os.environ)
            log.unlink()
        self._save(ros=self.ros_name)

    def _has_pip(self) -> bool:
        """Whether `.venv` is whole; it is not when its making was interrupted."""
        if not self.python.exists():
            return False
        return subprocess.run([self.python, "-m", "pip", "--version"], capture_output=True).returncode == 0

    def _constraints(self) -> Path:
        """Return the constraints file, fitted to the NumPy of an installed ROS 2."""
        source = self.root / "constraints.txt"
        if self.ros_prefix is None:
            return source
        numpy_version = self._ask(python_of(self.ros_prefix), "import numpy; print(numpy.__version__)")
        fitted = self.venv / "constraints.txt"
        fitted.write_text(constraints_for(numpy_version, source.read_text()))
        return fitted

    def _install_packages(self) -> None:
        extras, tools = list(self.extras), []
        if self.ros_prefix is None and not self._messages_current():
            extras.append("ros-build")
            tools = [] if cmake_is_usable() else ["cmake>=3.21"]
        target = f".[{','.join(extras)}]" if extras else "."
        self._pip("installing packages", "-c", str(self._constraints()), "-e", target, *tools)
        done = self.state.get("packages", {})
        kept = done.get("extras", ()) if done.get("key") == self.packages_key else ()
        self._save(packages={"key": self.packages_key, "extras": sorted({*kept, *self.extras})})

    # -- messages ------------------------------------------------------------------------------------------

    def _build_messages(self) -> None:
        if self.ros_prefix:
            self._build_messages_with_colcon(self.ros_prefix)
        else:
            self._build_messages_with_pip()
        self._save(messages=self.messages_key)

    def _build_messages_with_pip(self) -> None:
        include = self._ask(self.python, "import sysconfig; print(sysconfig.get_path('include'))")
        if not Path(include, "Python.h").is_file():
            raise SetupError(f"{include} has no Python.h: install it with sudo apt install python3-dev")
        for name in MESSAGE_PACKAGES:
            options = ("-v", "--no-build-isolation", "--no-deps", "--force-reinstall")
            self._pip(f"building {name}", *options, str(self.workspace / "src" / name))

    def _build_messages_with_colcon(self, prefix: Path) -> None:
        missing = [name for name in MESSAGE_PACKAGES if not self._in_underlay(name)]
        self._colcon("building messages", "--base-paths", "src", "--packages-select", *missing)
        self._install_underlay_hook(prefix / "setup.bash", self.workspace / "install" / "local_setup.bash")

    def _in_underlay(self, package: str) -> bool:
        return self.ros_prefix is not None and (self.ros_prefix / "share" / package / "package.xml").is_file()

    def _colcon(self, label: str, *arguments: str) -> None:
        """Run colcon with the Python of `.venv`, which thereby becomes the one that runs the nodes."""
        if self._ask(self.python, "import importlib.util as u; print(u.find_spec('colcon_core'))") == "None":
            self._pip("installing colcon", "colcon-common-extensions")
        self._run(label, str(self.python), "-c", RUN_COLCON, "build", *arguments, cwd=self.workspace)

    def build_workspace(self) -> None:
        """Build the messages and this package with colcon, for `ros2 launch` and `ros2 run`.

        Raises:
            SetupError: the build failed.
        """
        options = ["--packages-skip", "vision_msgs"] if self._in_underlay("vision_msgs") else []
        if self.ros_prefix is None:  # beside the wheels nothing uses the C++ interfaces
            options += ["--cmake-args", "-DPYTHON_ONLY=ON"]
        self._colcon("building the workspace", "--base-paths", "..", "src", *options)
        say(f"Now: source {self.workspace / 'install' / 'setup.bash'}")

    def _install_underlay_hook(self, *setup_files: Path) -> None:
        """Let `.venv` find ROS 2 and the messages by itself: see ros_underlay.py."""
        site = self._site_packages()
        shutil.copy(Path(__file__).with_name("ros_underlay.py"), site / "ros_underlay.py")
        (site / "ros_underlay.json").write_text(json.dumps(sourced_environment(*setup_files), indent=2))
        (site / "ros_underlay.pth").write_text("import ros_underlay\n")

    # -- reference implementations -------------------------------------------------------------------------

    def _install_oracles(self) -> None:
        """Install what the extra `oracles` cannot: see oracles.py."""
        options = ("-c", str(self._constraints()), "--no-deps")
        self._pip("installing torchscale", *options, *oracles.WITHOUT_THEIR_REQUIREMENTS)
        oracles.remove_torchvision_stubs(self._site_packages())
        if not self._succeeds(oracles.CHECK):
            found = compiler()
            if found is None:
                raise SetupError(
                    "torchvision beside a CPU build of torch needs a C compiler: sudo apt install g++"
                )
            self._pip("installing the CUDA runtime", *options, oracles.CUDA_RUNTIME)
            sources = self.root / oracles.SOURCES
            oracles.install_torchvision_stubs(self._site_packages(), sources, found, self._run)
            self._run("importing torchvision", str(self.python), "-c", oracles.CHECK)
        self._save(oracles=self.oracles_key)
