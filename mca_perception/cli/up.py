"""`mca up`: start the nodes of a launch description."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    launch: Annotated[str, typer.Argument(help="Name of the launch description.")] = "armbench",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME:=VALUE]...", help="Launch arguments.")
    ] = None,
    list_arguments: Annotated[
        bool, typer.Option("--list-arguments", help="Print the launch arguments and end.")
    ] = False,
) -> None:
    """Start the nodes of a launch description without the launch packages; Ctrl-C stops them all.

    \b
    Example:
      mca up armbench source:=totes/mix-object-tote/images viewer:=true
    \f
    Raises:
        LaunchError: the description or an argument does not exist.
        typer.Exit: with the exit code of the process that failed.
    """
    from mca_perception.ros.bringup import bring_up, parse_assignments
    from mca_perception.ros.descriptions import LAUNCHES, LaunchError

    if list_arguments:
        if launch not in LAUNCHES:
            raise LaunchError(
                f"launch description {launch!r} does not exist; there are: {', '.join(LAUNCHES)}"
            )
        for argument in LAUNCHES[launch][0]:
            choices = f" One of: {', '.join(argument.choices)}." if argument.choices else ""
            typer.echo(f"{argument.name}:={argument.default}\n    {argument.description}{choices}")
        return
    if code := bring_up(launch, parse_assignments(arguments or [])):
        raise typer.Exit(code)
