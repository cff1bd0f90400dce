"""`mca export`: a training run becomes a model bundle."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mca_perception.crisis.bundle import CrisisBundle
    from mca_perception.deploy.bundle import ModelBundle
    from mca_perception.retrieval.bundle import RetrievalBundle


class Precision(str, Enum):
    """What matrix products and convolutions compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Target(str, Enum):
    """What runs the graphs."""

    ONNX = "onnx"
    TENSORRT = "tensorrt"
    TRITON = "triton"


def command(
    source: Annotated[
        Path, typer.Argument(help="Folder of a finished `mca train` run, or a bundle to add to.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, replaced as a whole; not needed with --build-only.")
    ] = None,
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
    with_tokenizer: Annotated[
        bool,
        typer.Option(
            help="Copy the vocabulary into the bundle of an image-text model; without it, the bundle needs "
            "MCA_TOKENIZER or --tokenizer at work."
        ),
    ] = True,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Convert the graphs of a bundle; a gate compares it with its source on --evaluate."
        ),
    ] = None,
    target: Annotated[
        Target, typer.Option(help="What the bundle is for, with --precision or alone.")
    ] = Target.ONNX,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="int8: folder of images or COCO file to find ranges on; repeatable."),
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="How many of them to look at.")] = 64,
    keep: Annotated[
        list[str] | None, typer.Option(help="Graph that stays in float32, such as segmentation; repeatable.")
    ] = None,
    fuse_preprocessing: Annotated[
        bool,
        typer.Option("--fuse-preprocessing", help="Graphs take uint8 NHWC pixels and normalise themselves."),
    ] = False,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Totes, picks or defect images in ARMBench's layout to run the gate on; repeatable."
        ),
    ] = None,
    evaluate_limit: Annotated[int | None, typer.Option(min=1, help="Images or picks of each.")] = None,
    max_loss: Annotated[
        float, typer.Option(min=0, max=1, help="Largest loss of a metric that passes; 0.01 is one point.")
    ] = 0.01,
    allow_regression: Annotated[
        bool, typer.Option("--allow-regression", help="Write what fails the gate; the manifest says so.")
    ] = False,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="<width>x<height>",
            help="Segment scenes at another size, with the same weights: a bundle's edge head is exported anew.",
        ),
    ] = None,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="With --target tensorrt: build the engines for this GPU.")
    ] = False,
) -> None:
    """Write a model bundle: ONNX graphs checked against the model, weights, manifest, model card.

    The segmentation's score threshold is the one with the best F1 on the recipe's validation split.

    \b
    Example:
      mca export models/nano --out models/nano --add-head runs/nano_cascade
      mca export models/nano --precision int8 --calibration photos --evaluate totes --out nano-int8
      mca export models/nano --target triton --out repository
      mca export models/nano --input-size 640x512 --out nano-640
    \f
    Raises:
        RecipeError: a run is not finished, the two have different backbones, or a graph does not reproduce the model.
        BundleError: the source bundle is damaged.
        AccuracyError: the converted bundle loses more than is allowed.
    """
    if precision == Precision.INT8 and _compact_retrieval_bundle(source, out, target):
        return
    if precision is not None or target != Target.ONNX or fuse_preprocessing:
        if input_size is not None:
            raise typer.BadParameter(
                "export for another size first, then convert that", param_hint="--input-size"
            )
        from mca_perception.cli.export_deployed import Deployment, export_deployed

        deployment = Deployment(
            precision=precision.value if precision else None,
            target=target.value,
            calibration=tuple(calibration or ()),
            calibration_images=calibration_images,
            keep=tuple(keep or ()),
            fused=fuse_preprocessing,
            evaluation=tuple(evaluate or ()),
            evaluation_limit=evaluate_limit,
            max_loss=max_loss,
            allow_regression=allow_regression,
            build_only=build_only,
        )
        export_deployed(source, out, deployment)
        return
    if out is None:
        raise typer.BadParameter("name the folder to write", param_hint="--out")
    other: ModelBundle | CrisisBundle | RetrievalBundle | None = None
    if input_size is not None:
        if add_head is not None:
            raise typer.BadParameter(
                "export for another size first, then add the head", param_hint="--input-size"
            )
        other = _resized_bundle(source, out, input_size, metrics or [])
    elif add_head is None:
        other = _crisis_bundle(source, out, version, metrics or []) or _retrieval_bundle(
            source, out, version, with_tokenizer, metrics or []
        )
    bundle = other or _perception_bundle(source, out, version, add_head, metrics or [])
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


def _resized_bundle(source: Path, out: Path, size: str, metrics: list[Path]) -> ModelBundle:
    """The bundle for scenes of another size, such as 640x512."""
    from mca_perception.deploy.bundle import ModelBundle
    from mca_perception.deploy.card import attach_metrics
    from mca_perception.training.resizing import resize_bundle

    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise typer.BadParameter(
            f"{size!r} is no width and height such as 640x512", param_hint="--input-size"
        )
    bundle = resize_bundle(ModelBundle.open(source), (int(height), int(width)), out)
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


def _compact_retrieval_bundle(source: Path, out: Path | None, target: Target) -> bool:
    """Write an image-text model with int8 weights; False if the source is another model."""
    from mca_perception.retrieval.card import is_retrieval_bundle

    if not is_retrieval_bundle(source):
        return False
    from mca_perception.errors import BundleError
    from mca_perception.retrieval.bundle import RetrievalBundle
    from mca_perception.retrieval.compact import compact_bundle

    if out is None or target != Target.ONNX:
        raise BundleError(
            f"{source} is an image-text model: name a folder with --out, and leave --target out; its graphs stay ONNX"
        )
    bundle = compact_bundle(RetrievalBundle.open(source), out)
    cosines = ", ".join(f"{k} {v:.4f}" for k, v in bundle.manifest.training["int8_weights_cosine"].items())
    typer.echo(f"{bundle.path}  int8 weights  fingerprint {bundle.fingerprint}  smallest cosine: {cosines}")
    return True


def _retrieval_bundle(
    source: Path, out: Path, version: str, with_tokenizer: bool, metrics: list[Path]
) -> RetrievalBundle | None:
    """The bundle of an image-text model; None if the source is none."""
    from mca_perception.retrieval.card import attach_metrics, is_retrieval_bundle

    if is_retrieval_bundle(source):
        from mca_perception.retrieval.bundle import RetrievalBundle

        return attach_metrics(RetrievalBundle.open(source), out, metrics)
    from mca_perception.deploy.bundle import MANIFEST_NAME

    if (source / MANIFEST_NAME).is_file():
        return None
    from mca_perception.training.recipe import load_recipe
    from mca_perception.training.retrieval_bundling import bundle_dual_encoder, is_dual_encoder
    from mca_perception.training.run import RECIPE

    if not (source / RECIPE).is_file() or not is_dual_encoder(load_recipe(source / RECIPE)):
        return None
    bundle = bundle_dual_encoder(source, out, version=version, with_tokenizer=with_tokenizer)
    return attach_metrics(bundle, out, metrics)
