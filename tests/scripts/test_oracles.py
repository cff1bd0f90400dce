"""The reference implementations: torchvision beside a CPU build of torch, and that nothing else notices."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import oracles
import pytest
import steps
from progress import SetupError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / oracles.SOURCES


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package that the set-up installs, imported from elsewhere; it is taken out of the import system again."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    spec = importlib.util.spec_from_file_location("hook_under_test", SOURCES / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loaded(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the libraries that are loaded, instead of loading them."""
    libraries: list[str] = []
    monkeypatch.setattr("ctypes.CDLL", lambda path, mode: libraries.append(Path(path).name))
    return libraries


def packages(folder: Path, *names: str) -> list[str]:
    """Make empty packages and return the search path to them."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    return [str(folder)]


def test_looking_for_torchvision_loads_what_it_links(
    hook: ModuleType, loaded: list[str], tmp_path: Path
) -> None:
    spec = hook.TorchvisionFinder.find_spec("torchvision", packages(tmp_path, "torch", "torchvision"))
    assert isinstance(spec, ModuleSpec)
    assert spec.name == "torchvision"
    assert loaded == ["libcudart.so.13", "libc10_cuda.so", "libtorch_cuda.so"]


@pytest.mark.parametrize(
    ("name", "installed"),
    [("numpy", ("torch", "torchvision")), ("torchvision", ("torch",)), ("torchvision", ("torchvision",))],
)
def test_nothing_is_loaded_otherwise(
    name: str, installed: tuple[str, ...], hook: ModuleType, loaded: list[str], tmp_path: Path
) -> None:
    hook.TorchvisionFinder.find_spec(name, packages(tmp_path, *installed))
    assert loaded == []


def test_a_cuda_build_of_torch_keeps_its_own_libraries(
    hook: ModuleType, loaded: list[str], tmp_path: Path
) -> None:
    path = packages(tmp_path, "torch", "torchvision")
    (tmp_path / "torch" / "lib").mkdir()
    (tmp_path / "torch" / "lib" / "libc10_cuda.so").touch()
    assert hook.TorchvisionFinder.find_spec("torchvision", path) is not None
    assert loaded == []


def test_the_finder_is_registered_once(hook: ModuleType) -> None:
    hook.register()
    hook.register()
    assert sys.meta_path.count(hook.TorchvisionFinder) == 1


def test_the_hook_imports_neither_torch_nor_ctypes() -> None:
    script = (
        "import json, sys; before = set(sys.modules)\n"
        f"sys.path.insert(0, {str(SOURCES.parent)!r}); import torchvision_cpu; torchvision_cpu.register()\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    command = [sys.executable, "-I", "-S", "-c", script]  # no hooks of this environment
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert {"torch", "ctypes"}.isdisjoint(json.loads(run.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="the wheels of other platforms are CPU builds")
def test_the_stubs_are_installed_and_removed(tmp_path: Path) -> None:
    compiler = steps.compiler()
    if compiler is None:
        pytest.skip("there is no C compiler")
    commands = []

    def run(label: str, *command: str) -> None:
        commands.append(label)
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    for _ in range(2):  # again over what is there
        oracles.remove_torchvision_stubs(tmp_path)
        oracles.install_torchvision_stubs(tmp_path, SOURCES, compiler, run)
    assert sorted(path.name for path in tmp_path.iterdir()) == [oracles.PACKAGE, oracles.HOOK]
    assert len(commands) == 4
    command = [
        sys.executable,
        "-c",
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1])\n"
        "print(library._ZN3c104cuda12device_countEv(), flush=True); library._ZN3c104cuda9SetDeviceEab()",
        str(tmp_path / oracles.PACKAGE / "libc10_cuda.so"),
    ]
    call = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert call.stdout == "0\n"
    assert call.returncode < 0  # a signal: nobody may go on as if there were a GPU
    assert "which a CPU build of torch lacks" in call.stderr

    oracles.remove_torchvision_stubs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_torchvision_works_in_every_process_of_this_environment() -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed: make test", exc_type=ImportError)
    script = (
        "import torch, torchvision\n"
        "boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4.1], [5, 5, 9, 9]])\n"
        "assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]\n"
        "features = torch.ones(1, 1, 16, 16, requires_grad=True)\n"
        "torchvision.ops.roi_align(features, [boxes], 2).sum().backward()\n"
        "assert abs(float(features.grad.sum()) - 12.0) < 1e-4\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


# -- when the step runs ----------------------------------------------------------------------------


class RecordedSetup(steps.Setup):
    """A set-up of `.venv` that records commands instead of running them."""

    def __init__(self, root: Path, *, torchvision_imports: bool) -> None:
        self.torchvision_imports = torchvision_imports
        self.commands: list[str] = []
        super().__init__(root, "test")

    def _run(self, label: str, *command: str, cwd: Path | None = None) -> None:
        self.commands.append(label)
        if label.startswith("compiling"):
            Path(command[command.index("-o") + 1]).touch()

    def _succeeds(self, script: str) -> bool:
        return self.torchvision_imports

    def _site_packages(self) -> Path:
        return self.venv


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with what the step reads, on a machine without ROS 2 and with a compiler."""
    for name in ("ROS_DISTRO", "AMENT_PREFIX_PATH", "MCA_ROS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MCA_ROS_ROOT", str(tmp_path / "opt"))
    monkeypatch.setattr(steps, "compiler", lambda: "/usr/bin/c++")
    sources = tmp_path / oracles.SOURCES
    sources.mkdir(parents=True)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("setup.py", "constraints.txt", "pyproject.toml", ".venv/bin/python"):
        (tmp_path / name).touch()
    for path in SOURCES.glob("*.*"):
        (sources / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_torchvision_that_imports_is_left_alone(root: Path) -> None:
    setup = RecordedSetup(root, torchvision_imports=True)
    setup._install_oracles()
    assert setup.commands == ["installing torchscale"]
    assert not (setup.venv / oracles.HOOK).exists()
    assert setup._oracles_current()


def test_a_torchvision_that_does_not_import_gets_the_stubs(root: Path) -> None:
    setup = RecordedSetup(root, torchvision_imports=False)
    setup._install_oracles()
    assert setup.commands[1] == "installing the CUDA runtime"
    assert setup.commands[-1] == "importing torchvision"
    assert (setup.venv / oracles.HOOK).is_file()
    assert setup._oracles_current()


def test_a_missing_compiler_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "compiler", lambda: None)
    with pytest.raises(SetupError, match=r"apt install g\+\+"):
        RecordedSetup(root, torchvision_imports=False)._install_oracles()


def test_changed_stubs_are_installed_again(root: Path) -> None:
    setup = RecordedSetup(root, torchvision_imports=True)
    setup._install_oracles()
    (root / oracles.SOURCES / "stub.c").write_text("")
    assert not setup._oracles_current()


@pytest.mark.parametrize("profile", ["demo", "colcon"])
def test_only_test_environments_have_reference_implementations(root: Path, profile: str) -> None:
    assert steps.Setup(root, profile)._oracles_current()
