"""`mca index`: read an identification folder once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="index", no_args_is_help=True, add_completion=False, help="Index identification data sets."
)


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: mca index build --data armbench-object-id-0.1")
def build(
    data: Annotated[Path, typer.Option(help="Folder with Picks/ and Reference_Images/.")],
    out: Annotated[
        Path | None, typer.Option(help="The index. Default: in the folder, where training finds it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Read and check all picks; write the index that training and evaluation then read."""
    from mca_perception.identification.index import build_index

    summary = vars(build_index(data, out))
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for name, value in summary.items():
        if isinstance(value, dict):
            typer.echo(f"{name:16}" + ("" if value else "none"))
            for key, count in sorted(value.items()):
                typer.echo(f"  {count:>8}  {key}")
        else:
            typer.echo(f"{name:16}{value}")
