"""`mca bench`: measure latency and throughput on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[Path, typer.Option(help="Folder of the model bundle.")] = Path("models/nano"),
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON files.  [benchmarks/results]")] = None,
    only: Annotated[str | None, typer.Option(help="Run this benchmark alone, such as pipeline.")] = None,
) -> None:
    """Run every script in benchmarks/ and write one JSON file each, with device, versions and input hash.

    Example: mca bench --only pipeline --out results
    """
    import subprocess
    import sys

    from mca_perception.cli.reports import new_folder
    from mca_perception.errors import McaError
    from mca_perception.resources import resource_path

    folder = resource_path("benchmarks")
    scripts = sorted(folder.glob("*.py")) if only is None else [folder / f"{only}.py"]
    if not scripts or not scripts[0].is_file():
        known = ", ".join(script.stem for script in sorted(folder.glob("*.py")))
        raise McaError(f"there is no benchmark {only!r} in {folder} (there are: {known}); name one of these")
    bundle = model if model.is_dir() else resource_path(str(model))
    results = new_folder(out or folder / "results")
    failed = []
    for script in scripts:
        arguments = [sys.executable, str(script), "--model", str(bundle), "--out", str(results)]
        if subprocess.run(arguments, check=False).returncode:
            failed.append(script.stem)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)
