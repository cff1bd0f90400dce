"""`mca labels`: find labels that are probably wrong."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="labels", no_args_is_help=True, add_completion=False, help="Find labels that are probably wrong."
)


@app.callback()
def _root() -> None:
    """Keep `audit` a sub-command although it is the only one."""


class Kind(str, Enum):
    """Errors to inject."""

    SYMMETRIC = "symmetric"
    LOOK_ALIKE = "look-alike"


class Features(str, Enum):
    """What images are compared by."""

    TOKENS = "tokens"
    EMBEDDING = "embedding"


@app.command(
    "audit",
    epilog="Example: mca labels audit --data photos --model models/nano --out results/labels",
)
def audit(
    data: Annotated[
        Path, typer.Option(help="Folder with a folder of images per class, or the Grocery Store data set.")
    ],
    model: Annotated[Path, typer.Option(help="Folder of a model bundle that identifies.")],
    out: Annotated[Path, typer.Option(help="Folder for suspicious.csv, report.md, metrics.json, pictures.")],
    split: Annotated[
        str | None, typer.Option(help="Part of the data: a folder above the classes, or a list.")
    ] = None,
    features: Annotated[
        Features,
        typer.Option(help="Mean and deviation of the backbone's tokens, or the identification embedding."),
    ] = Features.TOKENS,
    top: Annotated[float, typer.Option(min=0.001, max=1, help="Share of the images to list.")] = 0.1,
    inject: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of labels to make wrong first, to see what is found.")
    ] = 0.0,
    kind: Annotated[Kind, typer.Option(help="Which errors to inject.")] = Kind.SYMMETRIC,
    seed: Annotated[int, typer.Option(help="Seed of the injected errors and the folds.")] = 0,
) -> None:
    """List images whose label the embedding contradicts, the most suspicious first.

    Nothing is trained and nothing is changed: the list is for a person to look through.
    """
    from mca_perception.classification.label_audit import check_count
    from mca_perception.cli import reports
    from mca_perception.cli.labels_report import AuditSettings, write_audit
    from mca_perception.datasets.labelled_images import read_labelled_images
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.image_embeddings import embed_images

    images = read_labelled_images(data, split)
    check_count(len(images.paths))
    pipeline = PerceptionPipeline.from_bundle(model)
    reports.new_folder(out)
    with reports.progress_bar() as progress:
        rows = embed_images(pipeline, images.paths, progress)
    settings = AuditSettings(split, features.value, top, inject, kind.value, seed)
    typer.echo(write_audit(pipeline.bundle, images, rows, settings, out))
