"""`mca export`: a training run becomes a model bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mca_perception.crisis.bundle import CrisisBundle
    from mca_perception.deploy.bundle import ModelBundle


def command(
    source: Annotated[
        Path, typer.Argument(help="Folder of a finished `mca train` run, or a bundle to add to.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; replaced as a whole.")],
    add_head: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run that trained another segmentation head, a fusion of a pick's views or a defect head "
            "on the same frozen backbone; it is added to the bundle."
        ),
    ] = None,
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
      mca export models/nano --out models/nano --add-head runs/nano_cascade
    \f
    Raises:
        RecipeError: a run is not finished, the two have different backbones, or a graph does not reproduce the model.
        BundleError: the source bundle is damaged.
    """
    crisis = _crisis_bundle(source, out, version, metrics or []) if add_head is None else None
    bundle = crisis or _perception_bundle(source, out, version, add_head, metrics or [])
    typer.echo(
        f"{bundle.path}  {bundle.manifest.name} {bundle.manifest.version}  fingerprint {bundle.fingerprint}"
    )


def _perception_bundle(
    source: Path, out: Path, version: str, add_head: Path | None, metrics: list[Path]
) -> ModelBundle:
    from mca_perception.deploy.bundle import MANIFEST_NAME, ModelBundle
    from mca_perception.deploy.card import attach_metrics

    if (source / MANIFEST_NAME).is_file():
        bundle = ModelBundle.open(source)
    else:
        from mca_perception.training.bundling import bundle_run

        bundle = bundle_run(source, out, version=version)
        from mca_perception.training.defect_bundling import add_defects
        from mca_perception.training.recipe import load_recipe
        from mca_perception.training.run import RECIPE

        if load_recipe(source / RECIPE).defects is not None:
            bundle = add_defects(bundle, source, out)
    if add_head is not None:
        from mca_perception.training import bundling
        from mca_perception.training.defect_bundling import add_defects
        from mca_perception.training.recipe import load_recipe
        from mca_perception.training.run import RECIPE

        recipe = load_recipe(add_head / RECIPE)
        if recipe.defects is not None:
            add = add_defects
        else:
            add = bundling.add_fusion if recipe.segmentation is None else bundling.add_head
        bundle = add(bundle, add_head, out)
    return attach_metrics(bundle, out, metrics)


def _crisis_bundle(source: Path, out: Path, version: str, metrics: list[Path]) -> CrisisBundle | None:
    """The bundle of a crisis model; None if the source is none."""
    from mca_perception.crisis.bundle import CrisisBundle
    from mca_perception.crisis.linear_run import WEIGHTS, attach_metrics, bundle_linear_run, is_crisis_bundle

    if (source / WEIGHTS).is_file():
        bundle = bundle_linear_run(source, out, version=version)
    elif is_crisis_bundle(source):
        bundle = CrisisBundle.open(source)
    else:
        return None
    return attach_metrics(bundle, out, metrics)
