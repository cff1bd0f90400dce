"""`mca train`: train a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, see recipes/.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes of the recipe, section.key=value.", metavar="[KEY=VALUE]..."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/NAME of the recipe.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Train a model; Ctrl-C saves, --resume goes on. Writes weights, log.jsonl and curves.png.

    \b
    Example:
      mca train recipes/nano.yaml segmentation.data=data/totes identification.data=data/picks
    \f
    Raises:
        RecipeError: the recipe or an override is not valid, or the run folder holds a run already.
    """
    from mca_perception.crisis.recipe import is_linear_recipe

    if is_linear_recipe(recipe):
        _train_linear(recipe, list(overrides or []), out)
        return
    from mca_perception.training.recipe import load_recipe
    from mca_perception.training.run import run_recipe

    changes = list(overrides or [])
    if max_steps is not None:
        changes.append(f"budget.max_steps={max_steps}")
    settings = load_recipe(recipe, changes)
    state = run_recipe(settings, out or Path("runs") / settings.name, resume=resume)
    for name, value in state.metrics.items():
        typer.echo(f"{name:32} {value}")


def _train_linear(recipe: Path, overrides: list[str], out: Path | None) -> None:
    """Fit a linear crisis model, which takes seconds: there is nothing to stop or resume."""
    from mca_perception.crisis.linear_run import train_linear
    from mca_perception.crisis.recipe import load_linear_recipe

    settings = load_linear_recipe(recipe, overrides)
    train_linear(settings, out or Path("runs") / settings.name, typer.echo)
