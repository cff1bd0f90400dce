"""Entry point of the `mca` command.

A command lives in `mca_perception/cli/<module>.py` as a function `command`, or as a typer application `app`
when it has sub-commands. Its module is imported when it is called, so `mca --help` is quick and works without
the extras.

Exit codes: 0 fine, 1 a check or gate failed, 2 bad input or something is not installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from mca_perception import __version__
from mca_perception.errors import McaError

EXIT_BAD_INPUT = 2


class _Command(NamedTuple):
    """Where a command lives and what it does in one line."""

    module: str
    summary: str


COMMANDS = {
    "demo": _Command("demo", "Run the nodes on totes or your own images and show the result."),
    "up": _Command("up", "Start the nodes without the ROS launch packages."),
    "view": _Command("view", "Show the running nodes in a browser (Foxglove)."),
    "top": _Command("top", "Show what the running nodes do."),
    "doctor": _Command("doctor", "Tell what is installed, and what is missing for what."),
    "synth": _Command("synth", "Synthesise totes and picks in ARMBench's formats."),
    "train": _Command("train", "Train a model from a recipe."),
    "eval": _Command("evaluate", "Evaluate a model bundle on a data set."),
    "labels": _Command("labels", "Find labels that are probably wrong."),
    "calibrate": _Command("calibrate", "Choose a model's decision thresholds on held-out data."),
    "export": _Command(
        "export", "Make a model bundle from a training run, its graphs checked against the model."
    ),
    "checkpoint": _Command("checkpoint", "Inspect and convert weights files of the backbone."),
    "bench": _Command("bench", "Measure latency and throughput on this machine."),
    "gallery": _Command("gallery", "Manage the product gallery."),
    "retrieval": _Command("retrieval", "Find images for a text or a document."),
    "crisis": _Command("crisis", "Categorise crisis posts; check CrisisMMD and TREC-IS files."),
    "index": _Command("index", "Index identification data sets, so that they open at once."),
}

# Top-level module that may be missing -> extra that brings it.
EXTRAS = {
    "faiss": "retrieval",
    "foxglove": "foxglove",
    "hypothesis": "dev",
    "ir_measures": "retrieval",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "openvino": "openvino",
    "open_clip": "backbones",
    "peft": "lora",
    "pyarrow": "retrieval",
    "pytest": "dev",
    "qdrant_client": "qdrant",
    "rclpy": "ros",
    "sensor_msgs": "ros",
    "scipy": "train",
    "sklearn": "crisis",
    "timm": "backbones",
    "torch": "train",
    "transformers": "backbones",
    "tritonclient": "triton",
}
MESSAGE_PACKAGES = ("vision_msgs", "mca_perception_msgs")


def _load(name: str) -> Any:
    """Import a command's module and turn it into a click command or group."""
    module = import_module(f"mca_perception.cli.{COMMANDS[name].module}")
    if hasattr(module, "app"):
        return typer.main.get_group(module.app)
    single = typer.Typer(add_completion=False)
    single.command(name)(module.command)
    return typer.main.get_command(single)


class _LazyGroup(TyperGroup):
    """Lists the commands from `COMMANDS` and imports only the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest


app = typer.Typer(
    name="mca",
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Perception for pick-and-place robots: run, train, evaluate and export.",
    epilog="Example: mca synth totes --out totes --count 20 --seed 1",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mca_perception {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _never_called() -> None:
    """Stands in the command list until `_LazyGroup` replaces it by the real command."""


for _name, _entry in COMMANDS.items():
    app.command(_name, help=_entry.summary)(_never_called)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT)


def missing_module_remedy(module: str) -> str | None:
    """Say how to install a module that could not be imported.

    Args:
        module: dotted name of the missing module.

    Returns:
        The sentence to show, or None when the module is not one that an extra or the set-up brings.
    """
    top = module.partition(".")[0]
    if top in MESSAGE_PACKAGES:
        return f"the ROS messages {top} are not built: run `make demo`, or `make setup` for everything"
    if top in EXTRAS:
        install = f"pip install -c constraints.txt -e '.[{EXTRAS[top]}]'"
        return f"{top} is not installed: run `make setup`, or `{install}`"
    return None


def main() -> None:
    """Run the command line; bad input and missing extras end in one line and exit code 2."""
    try:
        app()
    except McaError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        remedy = missing_module_remedy(error.name or "")
        if remedy is None:
            raise
        _fail(remedy)


if __name__ == "__main__":
    main()
