"""`mca eval`: evaluate a model bundle on a data set."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mca_perception.cli import evaluate_retrieval
from mca_perception.cli.evaluate_options import Data, Limit, Model, Out, Seed

app = typer.Typer(
    name="eval", no_args_is_help=True, add_completion=False, help="Evaluate a model bundle on a data set."
)

app.add_typer(evaluate_retrieval.app)

DEFAULT_SUBSET = "mix-object-tote"


class Head(str, Enum):
    """Segmentation heads."""

    CASCADE = "cascade"
    EDGE = "edge"


@app.command(
    "armbench-segmentation",
    epilog="Example: mca eval armbench-segmentation --data totes --subset all --model models/nano --out results/totes",
)
def armbench_segmentation(
    data: Data,
    model: Model,
    out: Out,
    subset: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder below --data; may be repeated. all: those of ARMBench's three that are there. "
            "[default: mix-object-tote]"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    head: Annotated[
        Head | None, typer.Option(help="Segmentation head of the bundle; its default when left out.")
    ] = None,
    tiles: Annotated[
        str,
        typer.Option(
            help="Look at crowded images in tiles, too: tiles per side of every further look, such as 2,3. "
            "Every tile costs as much as the whole image."
        ),
    ] = "",
    tiles_from: Annotated[
        int, typer.Option(help="With --tiles: only where the first look finds so many objects.")
    ] = 0,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Score masks and boxes with pycocotools; also writes detections.json (COCO results)."""
    from mca_perception.cli import reports
    from mca_perception.cli.segmentation_report import segmentation_report, write_subset
    from mca_perception.datasets.coco import CocoSplit
    from mca_perception.pipeline import PerceptionPipeline, Tiling
    from mca_perception.pipeline.evaluation import evaluate_segmentation

    try:
        tiling = Tiling.parse(tiles, tiles_from)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    subsets = _subsets(data, subset or [DEFAULT_SUBSET], split)
    pipeline = PerceptionPipeline.from_bundle(model, head=head and head.value)
    pipeline.tiling = tiling
    facts = {**reports.model_facts(pipeline.bundle), "head": pipeline.segmentation_settings.head}
    looks = {"tiles": list(tiling.grids), "tiles_from": tiling.from_objects}
    reports.new_folder(out)
    results: dict[str, dict[str, Any]] = {}
    for name in subsets:
        records = CocoSplit.open(data, subset=name, split=split, limit=limit)
        with reports.progress_bar() as progress:
            run = evaluate_segmentation(pipeline, records, seed=seed, progress=progress)
        metrics = {**run.metrics, "model": facts, **looks, **reports.environment(("matplotlib",))}
        metrics["data"] = {**metrics["data"], "subset": name, "split": split, "limit": limit}
        write_subset(run, out if len(subsets) == 1 else reports.new_folder(out / name))
        results[name] = metrics
    reports.write_text(out / "report.md", segmentation_report(results, out))
    first = results[subsets[0]]
    reports.write_json(out / "metrics.json", {**first, "subsets": results} if len(results) > 1 else first)
    for name, metrics in results.items():
        line = reports.summary(metrics, ("mask_map50", "mask_map75", "mask_map"))
        if metrics["object_only"]:
            line += f"  Object only: {reports.summary(metrics['object_only'], ('mask_map50',))}"
        typer.echo(f"{name}  {line}  {reports.summary(metrics, ('images',))} -> {out / 'report.md'}")


@app.command(
    "armbench-identification",
    epilog="Example: mca eval armbench-identification --data picks --model models/nano --out results/picks",
)
def armbench_identification(
    data: Data,
    model: Model,
    out: Out,
    split: Annotated[str, typer.Option(help="Split of the picks, or 'all'.")] = "testset",
    gallery: Annotated[
        str, typer.Option(help="What to rank. container: the pick's manifest. all: all products.")
    ] = "container",
    views: Annotated[int, typer.Option(min=1, max=4, help="Images per pick.")] = 1,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Score Recall@k over unique products, the confidence, and the refusal of unknown products."""
    from mca_perception.cli import reports
    from mca_perception.cli.identification_report import write_identification
    from mca_perception.identification.index import load_identification
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.identification_evaluation import evaluate_identification

    if gallery not in ("container", "all"):
        raise typer.BadParameter("give container or all", param_hint="--gallery")
    pipeline = PerceptionPipeline.from_bundle(model)
    reports.new_folder(out)
    index = load_identification(data, split=split, limit=limit)
    with reports.progress_bar() as progress:
        run = evaluate_identification(
            pipeline, index, views=views, all_references=gallery == "all", seed=seed, progress=progress
        )
    run.metrics["data"] |= {"split": split, "limit": limit}
    typer.echo(write_identification(pipeline, index, run, out))


@app.command(
    "grocery",
    epilog="Example: mca eval grocery --data grocery --split val --references 5 --model runs/g --out out",
)
def grocery(
    data: Annotated[Path, typer.Option(help="Folder of the Grocery Store data set.")],
    model: Model,
    out: Out,
    split: Annotated[str, typer.Option(help="NAME of the list of photos NAME.txt.")] = "val",
    references: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Photos per product beside the iconic image, out of train.txt."),
    ] = 0,
    seed: Seed = 0,
) -> None:
    """Score Recall@k of natural photos against iconic images and a few natural photos."""
    from mca_perception.cli import reports
    from mca_perception.cli.identification_report import write_identification
    from mca_perception.datasets.grocery import read_grocery
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.identification_evaluation import evaluate_identification

    pipeline = PerceptionPipeline.from_bundle(model)
    reports.new_folder(out)
    index = read_grocery(data, split, natural_references=references, seed=seed)
    with reports.progress_bar() as progress:
        run = evaluate_identification(pipeline, index, seed=seed, progress=progress)
    run.metrics.update(task="grocery", gallery="all products")
    run.metrics["data"] |= {"split": split, "natural_references": references}
    typer.echo(write_identification(pipeline, index, run, out))


@app.command(
    "armbench-defects",
    epilog="Example: mca eval armbench-defects --data defects --model models/nano --out results/defects",
)
def armbench_defects(
    data: Data,
    model: Model,
    out: Out,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Score defects per image and per pick at fixed false-positive rates; also writes plots and worst cases."""
    from mca_perception.cli.defects_report import evaluate

    evaluate(data, model, out, limit=limit, seed=seed)


@app.command(
    "armbench-defect-videos",
    epilog="Example: mca eval armbench-defect-videos --data defects/video --model runs/clips --out results/clips",
)
def armbench_defect_videos(
    data: Data,
    model: Annotated[Path, typer.Option(help="Folder of a finished run of a recipe with clips.")],
    out: Out,
    limit: Limit = None,
) -> None:
    """Score defect videos: accuracy per bit, exact match, and how many frames a decision takes."""
    from mca_perception.cli.defects_clips import evaluate

    evaluate(data, model, out, limit=limit)


@app.command(
    "embeddings",
    epilog="Example: mca eval embeddings --data photos --split val --model models/mine --before models/nano --out out",
)
def embeddings(
    data: Annotated[
        Path, typer.Option(help="Folder with a folder of images per class, or the Grocery Store data set.")
    ],
    model: Model,
    out: Out,
    before: Annotated[
        Path | None, typer.Option(help="Bundle to compare with, such as before training.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data: a folder, or a list.")] = None,
    limit: Annotated[int, typer.Option(min=4, max=50_000, help="Judge so many images, drawn evenly.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the draws, the episodes and the map.")] = 0,
) -> None:
    """Measure how well embeddings tell classes apart: cosines, isotropy, margin, neighbours, few-shot, a map."""
    from mca_perception.cli.embeddings_report import evaluate

    typer.echo(evaluate(data, model, before, out, split=split, limit=limit, seed=seed))


@app.command(
    "crisismmd",
    epilog="Example: mca eval crisismmd --data data/crisismmd --task humanitarian --split dev --model models/crisis "
    "--out results/crisis",
)
def crisismmd(
    data: Annotated[Path, typer.Option(help="Folder with the published split files (.tsv).")],
    model: Annotated[Path, typer.Option(help="Folder of a bundle, or of a finished run of a neural model.")],
    out: Out,
    task: Annotated[str, typer.Option(help="informative or humanitarian.")] = "informative",
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Also pairs whose text and image labels differ.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of another evaluation of the same posts, to compare with.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Score the categories of crisis posts; also writes predictions.csv and plots."""
    from mca_perception.cli.crisis_reports import evaluate_crisismmd

    evaluate_crisismmd(
        data, model, out, task=task, split=split, agreed=not all_pairs, baseline=baseline, seed=seed
    )


@app.command(
    "trec-is", epilog="Example: mca eval trec-is --labels labels.json --run myrun.jsonl.gz --out results/trec"
)
def trec_is(
    labels: Annotated[list[Path], typer.Option(help="File of assessors' labels; may be repeated.")],
    run: Annotated[Path, typer.Option(help="Run file of 2021 (JSON lines) or 2019 (tab separated).")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and report.md.")],
    skip_unknown_types: Annotated[
        bool, typer.Option("--skip-unknown-types", help="Leave out types of older ontologies and count them.")
    ] = False,
    allow_missing_topics: Annotated[
        bool, typer.Option("--allow-missing-topics", help="Count topics without an answer as negative.")
    ] = False,
) -> None:
    """Score a TREC Incident Streams run with the official metrics."""
    from mca_perception.cli.crisis_reports import evaluate_trec_is

    evaluate_trec_is(
        labels, run, out, skip_unknown_types=skip_unknown_types, allow_missing_topics=allow_missing_topics
    )


def _subsets(data: Path, names: list[str], split: str) -> list[str]:
    """Folders to evaluate: those named, or ARMBench's that are there; one that is missing is refused at once."""
    from mca_perception.datasets.coco import SUBSETS
    from mca_perception.errors import DatasetError

    if "all" in names:
        names = [name for name in SUBSETS if (data / name / f"{split}.json").is_file()]
        if not names:
            raise DatasetError(
                f"{data} has none of {', '.join(SUBSETS)} with a {split}.json; give the folder that holds them"
            )
    missing = [name for name in names if not (data / name / f"{split}.json").is_file()]
    if missing and len(names) > 1:
        raise DatasetError(f"{data / missing[0] / split}.json is missing; leave out --subset {missing[0]}")
    return list(dict.fromkeys(names))


@app.command("bag", epilog="Example: mca eval bag --bag recording.mcap --model models/nano --out results/bag")
def bag(
    bag: Annotated[Path, typer.Option(help="rosbag2 folder, .mcap or .db3 file.")],
    model: Model,
    out: Out,
    topic: Annotated[str, typer.Option(help="Image topic, where the bag has several.")] = "",
    gallery: Annotated[Path | None, typer.Option(help="Gallery of the products.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="COCO file; its images name their frame by stamp_ns, else by id from 0 on."),
    ] = None,
    annotated: Annotated[
        bool, typer.Option(help="Also write annotated/, an mcap recording with overlays, for Foxglove.")
    ] = True,
    tracking: Annotated[bool, typer.Option("--tracking", help="Ids that last over frames.")] = False,
    limit: Limit = None,
) -> None:
    """Perceive every image of a recording, read directly: no playback, no dropped frame, the same result each time."""
    from mca_perception.cli import reports
    from mca_perception.cli.bag_report import label_metrics, write_bag_run
    from mca_perception.identification.gallery import Gallery
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.ros.bag_evaluation import evaluate_bag
    from mca_perception.ros.bags import BagSource

    source = BagSource(bag, topic=topic)
    pipeline = PerceptionPipeline.from_bundle(model)
    if gallery is not None:
        opened = Gallery.open(gallery, model=pipeline.bundle.embedding_fingerprint, create=False)
        pipeline = PerceptionPipeline.from_bundle(model, gallery=opened)
    reports.new_folder(out)
    run = evaluate_bag(
        source, pipeline, annotated=out / "annotated" if annotated else None, tracking=tracking, limit=limit
    )
    metrics = {
        "task": "bag",
        **run.metrics(),
        **(label_metrics(run, labels) if labels else {}),
        "model": reports.model_facts(pipeline.bundle),
        "data": {
            "bag": str(bag),
            "source": source.description,
            "limit": limit,
            "labels": labels and str(labels),
        },
        **reports.environment(("rosbags",)),
    }
    source.close()
    write_bag_run(run, out, metrics)
    if run.damage:
        typer.echo(f"warning: {run.damage}", err=True)
    names = ("frames", "objects", *(("mask_map50", "mask_map") if labels else ()))
    typer.echo(
        f"{reports.summary(metrics, names)}  skipped {sum(run.skipped.values())} -> {out / 'metrics.json'}"
    )
