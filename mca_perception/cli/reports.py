"""What the evaluation commands write: figures, tables and the facts needed to repeat them."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mca_perception import __version__
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import McaError

__all__ = [
    "closing",
    "device_slug",
    "environment",
    "latency",
    "left_out",
    "machine",
    "model_facts",
    "new_folder",
    "opening",
    "progress_bar",
    "summary",
    "table",
    "write_json",
    "write_json_array",
    "write_text",
]

_PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless", "pycocotools")


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Device, versions (also of ``packages``) and time of a run."""
    versions = {"python": platform.python_version(), "mca_perception": __version__}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": {"cpu": _cpu_name(), "cores": os.cpu_count(), "machine": platform.machine()},
        "versions": versions,
    }


def device_slug(facts: dict[str, Any]) -> str:
    """The device of :func:`environment` (its GPU, if one was added) as part of a file name."""
    device = facts["device"]
    return re.sub(r"[^a-z0-9]+", "-", device.get("gpu", device["cpu"]).lower()).strip("-") or "unknown"


def model_facts(bundle: ModelBundle) -> dict[str, str]:
    """Name, version and fingerprint of a bundle."""
    manifest = bundle.manifest
    return {"name": manifest.name, "version": manifest.version, "fingerprint": bundle.fingerprint}


def new_folder(path: Path) -> Path:
    """Make a folder for results.

    Raises:
        McaError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise McaError(f"folder {path} cannot be made ({error.strerror}); choose another --out") from error
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    _write_parts(path, [text])


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_json_array(path: Path, entries: Iterable[Any]) -> None:
    """Write a JSON array atomically, one entry per line and never the whole text in memory."""

    def parts() -> Iterator[str]:
        separator = "[\n"
        for entry in entries:
            yield separator + json.dumps(entry, ensure_ascii=False)
            separator = ",\n"
        yield "[]\n" if separator.startswith("[") else "\n]\n"

    _write_parts(path, parts())


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Make a Markdown table; numbers get four decimals, absent ones a dash."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@contextmanager
def progress_bar() -> Iterator[Any]:
    """Show loops on standard error: gives a function that wraps a sequence."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield lambda items, description: bar.track(items, total=len(items), description=description)


def _write_parts(path: Path, parts: Iterable[str]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
        stream.writelines(parts)
    Path(stream.name).chmod(0o644)
    Path(stream.name).replace(path)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def summary(metrics: dict[str, Any], names: Sequence[str]) -> str:
    """Put some figures on one line."""
    return "  ".join(f"{name} {_cell(metrics[name])}" for name in names)


def opening(title: str, metrics: dict[str, Any]) -> str:
    """Head of a report: model and data, and a plain word when the data is synthetic."""
    model, data = metrics["model"], metrics["data"]
    origin = "**synthesised data**" if data["synthesised"] else "data"
    return (
        f"# {title} on {data['folder']}\n\n"
        f"Model {model['name']} {model['version']} (`{model['fingerprint']}`); "
        f"{origin}, split {data['split']}.\n"
    )


def left_out(metrics: dict[str, Any]) -> str:
    """What was not used, and what was used although it is not plain, by reason."""
    counts = [(reason, count, "left out") for reason, count in metrics["skipped"].items()]
    counts += [(reason, count, "used") for reason, count in metrics.get("corrected", {}).items()]
    counts += [(reason, count, "used") for reason, count in metrics.get("incomplete", {}).items()]
    return table(("what", "count", "outcome"), counts) if counts else "Nothing.\n"


def latency(metrics: dict[str, Any]) -> str:
    """Milliseconds of every stage."""
    rows = [(stage, f["p50"], f["p95"]) for stage, f in metrics["latency_ms"].items()]
    return table(("stage", "median", "95th percentile"), rows)


def machine(metrics: dict[str, Any]) -> str:
    """Device, versions and time of a run."""
    device, versions = metrics["device"], metrics["versions"]
    return (
        f"{device['cpu']}, {device['cores']} cores, {device['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f"; {metrics['created']}.\n"
    )


def closing(metrics: dict[str, Any]) -> str:
    """Tail of a report: what was left out, latency, device and versions."""
    return "\n".join(
        [
            "## Left out or incomplete",
            left_out(metrics),
            "## Latency (ms)",
            latency(metrics),
            machine(metrics),
            "![worst cases](contact_sheet.png)\n",
        ]
    )
