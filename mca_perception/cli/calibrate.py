"""`mca calibrate`: choose a model's decision thresholds on held-out data and store them in its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mca_perception.cli import calibrate_camera

app = typer.Typer(
    name="calibrate",
    no_args_is_help=True,
    add_completion=False,
    help="Choose a model's decision thresholds on held-out data.",
)

app.command(
    "camera",
    epilog="Example: mca calibrate camera --images photos --board 9x6 --square 0.025 --out calibration/tote.yaml",
)(calibrate_camera.command)


@app.command(
    epilog="Example: mca calibrate identification --data picks-calibration --model models/nano --false-accept 0.01"
)
def identification(
    data: Annotated[Path, typer.Option(help="Folder of picks in ARMBench's layout.")],
    model: Annotated[Path, typer.Option(help="Folder of the model bundle.")],
    false_accept: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Share of unknown products that may be accepted.")
    ] = 0.01,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Probability with which that limit holds.")
    ] = 0.95,
    split: Annotated[
        str, typer.Option(help="Split of the picks, or 'all'. Not the one you report on.")
    ] = "testset",
    held_out: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Only the picks of the split that training held out with this identification.validation_fraction.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the recipe, for --held-out.")] = 0,
    views: Annotated[int, typer.Option(min=1, max=4, help="Images per pick.")] = 1,
    gallery: Annotated[
        str, typer.Option(help="container: for queries with a manifest. all: for queries among all products.")
    ] = "container",
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write. Default: --model.")] = None,
) -> None:
    """Choose when an answer is accepted and how sure it is; store both in the bundle.

    The threshold is the similarity that unknown products exceed at most at the stated rate: each pick is searched again
    without its own product. Galleries stay valid.
    """
    from dataclasses import replace

    from mca_perception.cli import reports
    from mca_perception.deploy.bundle import ModelBundle
    from mca_perception.errors import DatasetError
    from mca_perception.identification.index import load_identification
    from mca_perception.identification.splitting import held_out_picks, trainable_picks
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.identification_calibration import (
        calibrate_identification,
        store_calibration,
    )

    if gallery not in ("container", "all"):
        raise typer.BadParameter("give container or all", param_hint="--gallery")
    pipeline = PerceptionPipeline.from_bundle(model)
    index = load_identification(data, split=split)
    origin = f"{data.resolve().name}/{split}"
    if held_out is not None:
        picks = held_out_picks(trainable_picks(index), held_out, seed)[1]
        if not picks:
            raise DatasetError(
                f"{data} has no pick left with --held-out {held_out}; raise it or leave it out"
            )
        index = replace(index, picks=tuple(picks))
        origin += f", held out {held_out} with seed {seed}"
    with reports.progress_bar() as progress:
        run = calibrate_identification(
            pipeline,
            index,
            false_accept=false_accept,
            confidence=confidence,
            calibrated_on=f"{origin}, {len(index.picks)} picks",
            views=views,
            all_references=gallery == "all",
            progress=progress,
        )
    bundle = store_calibration(ModelBundle.open(model), run.calibration, out or model)
    chosen, figures = run.calibration, run.metrics["open_set"]
    typer.echo(
        f"threshold {chosen.threshold:.4f}  temperature {chosen.temperature:.4f}  "
        f"false accepts {figures['false_accepts']} of {figures['unknown']}  "
        f"{reports.summary(figures, ('true_accept_rate', 'refused_rate'))} on these picks -> {bundle.path}"
    )


@app.command(
    epilog="Example: mca calibrate thresholds --data defects --model models/nano --fpr 0.01 --confidence 0.95"
)
def thresholds(
    data: Annotated[Path, typer.Option(help="Folder of defect images in ARMBench's layout.")],
    model: Annotated[Path, typer.Option(help="Folder of the model bundle.")],
    fpr: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Share of nominal picks that may raise an alarm.")
    ] = 0.01,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Probability with which that limit holds.")
    ] = 0.95,
    part: Annotated[
        str,
        typer.Option(
            help="calibration: the sessions that training kept for this. train, test or all: of data that the model "
            "has never seen, such as your own cell's."
        ),
    ] = "calibration",
    seed: Annotated[int, typer.Option(help="Seed of the draw of one image per pick.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write. Default: --model.")] = None,
) -> None:
    """Choose the thresholds of the defect head for a false-positive rate, and store them in the bundle.

    Refuses when there are too few nominal picks for the promise, and says how many are needed.
    """
    from mca_perception.cli import reports
    from mca_perception.datasets.armbench_defects import read_defect_images
    from mca_perception.pipeline.defect_evaluation import calibrate_thresholds, store_thresholds
    from mca_perception.pipeline.inspection import DefectInspector

    inspector = DefectInspector.from_bundle(model)
    index = read_defect_images(data)
    with reports.progress_bar() as progress:
        fields = calibrate_thresholds(
            inspector, index, fpr, confidence, part=part, seed=seed, progress=progress
        )
    bundle = store_thresholds(inspector.bundle, fields, out or model)
    for point in fields["operating_points"]:
        if point["score"] == "combined" and point["fpr"] == fpr:
            typer.echo(
                f"{point['unit']}: alarm above {point['threshold']:.6f}; {point['false_alarms']} false alarms in "
                f"{point['negatives']} nominal, rate at most {point['fpr_bound']:.4f} with {confidence:g} confidence"
            )
    typer.echo(f"{fields['calibrated_on']} -> {bundle.path}")
