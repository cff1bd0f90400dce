"""`mca doctor`: what is installed, and what is missing for what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mca_perception.cli.environment import Report

ESSENTIAL = ("library", "nodes")


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Tell what is installed, and what is missing for which feature.

    Exits with 0 when the nodes can run, else with 1.

    \b
    Examples:
      mca doctor
      mca doctor --json > doctor.json
    """
    from mca_perception.cli.environment import examine

    report = examine()
    if as_json:
        typer.echo(report.to_json())
    else:
        _print(report)
    if not all(report.features[name].ready for name in ESSENTIAL):
        raise typer.Exit(1)


def _facts(report: Report) -> dict[str, str]:
    """The report's facts, in the order in which they are shown."""
    ros, model = report.ros, report.model
    packages = (f"{name} {version}" for name, version in report.packages.items() if version)
    return {
        "mca_perception": report.version,
        "Python": f"{report.python} ({report.executable})",
        "System": f"{report.system}, {report.machine}",
        "Processor": f"{report.cpu}, {report.cpu_count} cores, {' '.join(report.cpu_features)}",
        "Memory": f"{report.memory_gb} GB, shared memory {report.shared_memory_free_mb} MB free",
        "Disk": f"{report.disk_free_gb} GB free",
        "GPU": "; ".join(report.gpus) or "none found by nvidia-smi",
        "Packages": ", ".join(packages),
        "ONNX Runtime": ", ".join(report.providers) or "not installed",
        "Models run in": report.sessions,
        "ROS 2": f"{ros.distribution} from {ros.source}" if ros.source else "not installed",
        "Middleware": f"{ros.rmw or 'unknown'}, Fast DDS {ros.fastdds or 'not found'}",
        "Transport": report.transport,
        "Messages": ", ".join(f"{name} in {path}" for name, path in ros.messages.items()) or "not built",
        "ROS problem": ros.problem or "none",
        "Model": model.problem or f"{model.name}@{model.fingerprint}, every hash right ({model.path})",
    }


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(report).items():
        facts.add_row(name, value)
    console.print(facts)

    features = Table(box=None, padding=(0, 2, 0, 0), title="\nFeatures", title_justify="left")
    for column in ("Feature", "For", "State"):
        features.add_column(column, overflow="fold")
    for name, state in report.features.items():
        missing = f"missing {', '.join(state.missing)}  ->  {state.install}"
        text = Text("ready", style="green") if state.ready else Text(missing, style="yellow")
        features.add_row(name, state.purpose, text)
    console.print(features)
