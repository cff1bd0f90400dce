"""Imports point one way, and the runtime starts without torch and the library without ROS."""

import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import mca_perception

ROOT = Path(__file__).resolve().parents[1]
TORCH_FOLDERS = ("backbone", "contrastive", "pretraining", "training")
TORCH_PACKAGES = ("mca_perception.segmentation.cascade", "mca_perception.crisis.networks")
TORCH_FILES = (
    "model",
    "losses",
    "data",
    "task",
    "validation",
    "export",
    "heads",
    "loading",
    "fusion",
    "refinement",
)
HEAVY = ("torch", "rclpy", "onnxscript")


def runtime_modules(*, ros: bool) -> list[str]:
    """List the modules that must import without torch: those of ros/, or all others."""
    names = [module.name for module in pkgutil.walk_packages(mca_perception.__path__, "mca_perception.")]
    return [
        name
        for name in names
        if (name.split(".")[1] == "ros") == ros
        and name.split(".")[1] not in TORCH_FOLDERS
        and name.split(".")[-1] not in TORCH_FILES
        and not name.startswith(TORCH_PACKAGES)
    ]


def loaded_after_importing(modules: list[str]) -> set[str]:
    """Import modules in a fresh interpreter and return which heavy packages that loaded."""
    script = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_import_directions() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_logo=True) == 0


def test_library_and_cli_import_without_torch_and_ros() -> None:
    modules = runtime_modules(ros=False)
    assert "mca_perception.cli.main" in modules
    assert loaded_after_importing(modules) == set()


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is None, reason="ROS 2 is not installed: make demo")
def test_nodes_import_without_torch() -> None:
    assert "torch" not in loaded_after_importing(runtime_modules(ros=True))
