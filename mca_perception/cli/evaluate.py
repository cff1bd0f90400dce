"""`mca eval`: evaluate a model bundle on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="eval", no_args_is_help=True, add_completion=False, help="Evaluate a model bundle on a data set."
)

Data = Annotated[Path, typer.Option(help="Folder of the data set in ARMBench's layout.")]
Model = Annotated[Path, typer.Option(help="Folder of the model bundle.")]
Out = Annotated[Path, typer.Option(help="Folder for metrics.json, report.md and contact_sheet.png.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Evaluate only so many, in file order.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap interval.")]


@app.command(
    "armbench-segmentation",
    epilog="Example: mca eval armbench-segmentation --data totes --model models/nano --out results/totes",
)
def armbench_segmentation(
    data: Data,
    model: Model,
    out: Out,
    subset: Annotated[str, typer.Option(help="Folder below --data.")] = "mix-object-tote",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Limit = None,
) -> None:
    """Score masks and boxes with pycocotools; also writes detections.json (COCO results)."""
    from mca_perception.cli import reports
    from mca_perception.cli.contact_sheets import segmentation_sheet
    from mca_perception.datasets.coco import CocoSplit
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.evaluation import evaluate_segmentation

    pipeline = PerceptionPipeline.from_bundle(model)
    reports.new_folder(out)
    records = CocoSplit.open(data, subset=subset, split=split, limit=limit)
    with reports.progress_bar() as progress:
        run = evaluate_segmentation(pipeline, records, progress=progress)
    metrics = {**run.metrics, "model": reports.model_facts(pipeline.bundle), **reports.environment()}
    metrics["data"] = {**metrics["data"], "subset": subset, "split": split, "limit": limit}
    reports.write_json(out / "detections.json", run.detections)
    segmentation_sheet(run, out / "contact_sheet.png")
    reports.write_text(out / "report.md", _segmentation_report(metrics))
    reports.write_json(out / "metrics.json", metrics)
    names = ("mask_map50", "mask_map75", "mask_map", "box_map50", "images")
    typer.echo(f"{reports.summary(metrics, names)} -> {out / 'report.md'}")


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
    from mca_perception.datasets.armbench import read_identification
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.evaluation import evaluate_identification

    if gallery not in ("container", "all"):
        raise typer.BadParameter("give container or all", param_hint="--gallery")
    pipeline = PerceptionPipeline.from_bundle(model)
    reports.new_folder(out)
    index = read_identification(data, split=split, limit=limit)
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


def _segmentation_report(metrics: dict[str, Any]) -> str:
    from mca_perception.cli.reports import closing, opening, table

    names = ("mask_map50", "mask_map75", "mask_map", "box_map50", "box_map75", "box_map")
    evaluated = metrics["categories_evaluated"]
    missing = sorted(set(metrics["categories_in_data"]) - set(evaluated))
    note = f"The headline averages over: {', '.join(evaluated)}. "
    if missing:
        note += f"The model does not find {', '.join(missing)}, which counts as 0 under 'all categories'. "
    rows = [("evaluated categories", metrics), ("all categories", metrics["all_categories"])]
    if metrics["object_only"]:
        rows.insert(1, ("Object only", metrics["object_only"]))
    point = metrics["operating_point"]
    return "\n".join(
        [
            opening("Segmentation", metrics),
            f"{metrics['images']} images, {metrics['annotations']} annotations. {note}\n",
            table(("categories", *names), [(name, *(part[n] for n in names)) for name, part in rows]),
            "Average precision by pycocotools from detections.json: score at least "
            f"{metrics['score_floor']}, masks may overlap.\n",
            "## As published by the nodes",
            f"Every pixel belongs to one object; score threshold {point['score_threshold']}, mask IoU 0.5.\n",
            table(
                ("precision", "recall", "F1", "mean IoU", "best F1 at threshold"),
                [(*(point[k] for k in ("precision", "recall", "f1", "mean_iou", "best_f1_threshold")),)],
            ),
            "## By size (share of the image: small below 1/64, large above 1/16)",
            table(
                ("size", "annotations", *names[:3]),
                [(s, f["annotations"], *(f[n] for n in names[:3])) for s, f in metrics["by_size"].items()],
            ),
            "## By objects per image",
            table(
                ("objects", "images", *names[:3]),
                [(f["objects"], f["images"], *(f[n] for n in names[:3])) for f in metrics["by_count"]],
            ),
            "## Difficulty of the set",
            table(("figure", "value"), metrics["difficulty"].items()),
            closing(metrics),
        ]
    )


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
