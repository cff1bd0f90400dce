"""`mca eval`: evaluate a model bundle on a data set."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="eval", no_args_is_help=True, add_completion=False, help="Evaluate a model bundle on a data set."
)

DEFAULT_SUBSET = "mix-object-tote"


class Head(str, Enum):
    """Segmentation heads."""

    CASCADE = "cascade"
    EDGE = "edge"


Data = Annotated[Path, typer.Option(help="Folder of the data set in ARMBench's layout.")]
Model = Annotated[Path, typer.Option(help="Folder of the model bundle.")]
Out = Annotated[Path, typer.Option(help="Folder for metrics.json, report.md and pictures.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Evaluate only so many, in file order.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap interval.")]


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
        Head | None, typer.Option(help="Segmentation head of the bundle; the one that it holds by default.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Score masks and boxes with pycocotools; also writes detections.json (COCO results)."""
    from mca_perception.cli import reports
    from mca_perception.cli.segmentation_report import require_head, segmentation_report, write_subset
    from mca_perception.datasets.coco import CocoSplit
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.evaluation import evaluate_segmentation

    subsets = _subsets(data, subset or [DEFAULT_SUBSET], split)
    pipeline = PerceptionPipeline.from_bundle(model)
    facts = {
        **reports.model_facts(pipeline.bundle),
        "head": require_head(pipeline.bundle, head and head.value),
    }
    reports.new_folder(out)
    results: dict[str, dict[str, Any]] = {}
    for name in subsets:
        records = CocoSplit.open(data, subset=name, split=split, limit=limit)
        with reports.progress_bar() as progress:
            run = evaluate_segmentation(pipeline, records, seed=seed, progress=progress)
        metrics = {**run.metrics, "model": facts, **reports.environment(("matplotlib",))}
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
        str, typer.Option(help="container: the pick's manifest. all: among all products as well.")
    ] = "container",
    views: Annotated[int, typer.Option(min=1, max=4, help="Images per pick.")] = 1,
    limit: Limit = None,
    seed: Seed = 0,
) -> None:
    """Score Recall@k over unique products."""
    from mca_perception.cli import reports
    from mca_perception.cli.contact_sheets import identification_sheet
    from mca_perception.identification.index import load_identification
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.evaluation import evaluate_identification

    if gallery not in ("container", "all"):
        raise typer.BadParameter("give container or all", param_hint="--gallery")
    pipeline = PerceptionPipeline.from_bundle(model)
    reports.new_folder(out)
    index = load_identification(data, split=split, limit=limit)
    with reports.progress_bar() as progress:
        run = evaluate_identification(
            pipeline, index, views=views, all_references=gallery == "all", seed=seed, progress=progress
        )
    metrics = {**run.metrics, "model": reports.model_facts(pipeline.bundle), **reports.environment()}
    metrics["data"] = {**metrics["data"], "split": split, "limit": limit}
    identification_sheet(pipeline, index, run.ranked, out / "contact_sheet.png", views=views)
    reports.write_text(out / "report.md", _identification_report(metrics))
    reports.write_json(out / "metrics.json", metrics)
    names = ("recall@1", "recall@2", "recall@3", "chance_recall@1", "queries")
    typer.echo(f"{reports.summary(metrics, names)} -> {out / 'report.md'}")


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


def _identification_report(metrics: dict[str, Any]) -> str:
    from mca_perception.cli.reports import closing, opening, table

    names = ("recall@1", "recall@2", "recall@3", "chance_recall@1")
    image_names = ("recall_by_image@1", "recall_by_image@2", "recall_by_image@3")
    galleries = [("container", metrics)]
    if "all_references" in metrics:
        galleries.append(("all products", metrics["all_references"]))
    low, high = metrics["recall@1_interval95"]
    return "\n".join(
        [
            opening("Identification", metrics),
            f"{metrics['queries']} queries with up to {metrics['views']} view(s); "
            f"{metrics['products']} products with {metrics['reference_images']} reference images. "
            "The similarity of a product is the largest cosine between any view and any of its reference "
            "images; k counts unique products.\n",
            table(
                ("gallery", *names, *image_names, "mean candidates"),
                [
                    (name, *(part[n] for n in (*names, *image_names)), part["mean_candidates"])
                    for name, part in galleries
                ],
            ),
            f"95 % interval of recall@1 in the container: {low:.4f} to {high:.4f} (bootstrap over queries, "
            f"seed {metrics['seed']}). `recall_by_image` counts reference images instead of products, as "
            "some publications do.\n",
            "Queries that could not be ranked count as wrong:\n",
            table(("reason", "queries"), metrics["not_ranked"].items()),
            "## By products in the container",
            table(
                ("products", "queries", *names),
                [(f["products"], f["queries"], *(f[n] for n in names)) for f in metrics["by_manifest_size"]],
            ),
            closing(metrics),
        ]
    )
