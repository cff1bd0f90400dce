"""Options that the commands of `mca eval` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Data", "Limit", "Model", "Out", "Seed"]

Data = Annotated[Path, typer.Option(help="Folder of the data set in ARMBench's layout.")]
Model = Annotated[Path, typer.Option(help="Folder of the model bundle.")]
Out = Annotated[Path, typer.Option(help="Folder for metrics.json, report.md and pictures.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Evaluate only so many, in file order.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap interval.")]
