"""`mca export`: a training run becomes a model bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[
        Path, typer.Argument(help="Folder of a finished `mca train` run, or a bundle to add --metrics to.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; replaced as a whole.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.1.0",
    metrics: Annotated[
        list[Path] | None,
        typer.Option(help="metrics.json of `mca eval`, for manifest and model card; repeatable."),
    ] = None,
) -> None:
    """Write a model bundle: ONNX graphs checked against the model, weights, manifest, model card.

    The segmentation's score threshold is the one with the best F1 on the recipe's validation split.

    \b
    Example:
      mca export runs/nano --out models/nano
    \f
    Raises:
        RecipeError: the run is not finished, or a graph does not reproduce the model.
        BundleError: the source bundle is damaged.
    """
    if (source / "manifest.json").is_file():
        from mca_perception.deploy.bundle import ModelBundle

        bundle = ModelBundle.open(source)
    else:
        from mca_perception.training.bundling import bundle_run

        bundle = bundle_run(source, out, version=version)
    from mca_perception.deploy.card import attach_metrics

    bundle = attach_metrics(bundle, out, metrics or [])
    typer.echo(
        f"{bundle.path}  {bundle.manifest.name} {bundle.manifest.version}  fingerprint {bundle.fingerprint}"
    )
