"""`mca top`: what the running nodes do, in a terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so many seconds.")] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one table and end; exit code 1 when no node was heard.")
    ] = False,
) -> None:
    """Show state, rates, latencies, steps and dropped frames of all running nodes; Ctrl-C ends it.

    \b
    Example:
      mca top
      mca top --once --seconds 5
    \f
    Raises:
        typer.Exit: with 1 when ``--once`` heard no node.
    """
    from rich.console import Console

    from mca_perception.ros.top import show

    heard = show(Console(), seconds=10.0 if once and seconds is None else seconds, once=once)
    if once and not heard:
        raise typer.Exit(1)
