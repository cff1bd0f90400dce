"""What the identification evaluations write: report.md and its plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mca_perception.cli.plots import can_plot
from mca_perception.cli.reports import (
    closing,
    environment,
    model_facts,
    opening,
    summary,
    table,
    write_json,
    write_text,
)
from mca_perception.datasets.armbench import IdentificationIndex
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.identification_evaluation import IdentificationRun

__all__ = ["write_identification"]

RECALLS = ("recall@1", "recall@2", "recall@3")
COLUMNS = (*RECALLS, "recall_by_image@1", "recall_by_image@2", "recall_by_image@3", "map", "map_by_image")


def write_identification(
    pipeline: PerceptionPipeline, index: IdentificationIndex, run: IdentificationRun, out: Path
) -> str:
    """Write metrics.json, report.md, the plots and the contact sheet of the worst cases; returns a line of figures."""
    from mca_perception.cli.contact_sheets import identification_sheet

    facts = {"model": model_facts(pipeline.bundle), **environment(("matplotlib",))}
    metrics = {**run.metrics, **facts}
    identification_sheet(pipeline, index, run.ranked, out / "contact_sheet.png", views=metrics["views"])
    pictures = _write_plots(run, out)
    write_text(out / "report.md", _report(metrics, pictures))
    write_json(out / "metrics.json", metrics)
    names = ("recall@1", "recall@2", "recall@3", "chance_recall@1", "queries")
    return f"{summary(metrics, names)} -> {out / 'report.md'}"


def _write_plots(run: IdentificationRun, out: Path) -> dict[str, str]:
    """Draw what there is to draw; returns the title of every picture by its file name."""
    if not can_plot():
        return {}
    from mca_perception.cli.identification_plots import (
        plot_manifest_sizes,
        plot_open_set,
        plot_reliability,
    )
    from mca_perception.identification.open_set import receiver_operating_curve

    pictures = {}
    metrics = run.metrics
    by_size = metrics.get("container", metrics)["by_manifest_size"]
    if len(by_size) > 1:
        pictures["recall_by_manifest_size.png"] = "recall by products in the container"
        plot_manifest_sizes(by_size, out / "recall_by_manifest_size.png")
    if metrics["confidence"]["before"]["queries"]:
        pictures["reliability.png"] = "reliability of the confidence"
        plot_reliability(metrics["confidence"], out / "reliability.png")
    curve = receiver_operating_curve(run.ranked)
    if len(curve[0]):
        pictures["open_set.png"] = "known and unknown products accepted"
        plot_open_set(curve, metrics.get("open_set"), out / "open_set.png")
    return pictures


def _report(metrics: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Markdown report; ``pictures`` are titles by file name."""
    gallery = {"all": "all products"}.get(metrics["gallery"], metrics["gallery"])
    by_size = metrics.get("container", metrics)["by_manifest_size"]
    galleries = [(gallery, metrics)]
    if "most_similar_view" in metrics:
        galleries.append(
            (f"{gallery}, most similar view instead of the network", metrics["most_similar_view"])
        )
    if "container" in metrics:
        galleries.append(("container", metrics["container"]))
    low, high = metrics["recall@1_interval95"]
    parts = [
        opening("Identification", dict(metrics)),
        f"{metrics['queries']} queries with up to {metrics['views']} view(s), joined by: {metrics['view_fusion']}; "
        f"{metrics['products']} products with {metrics['reference_images']} reference embeddings, joined by: "
        f"{metrics['reference_fusion']}. Similarities are cosines; k counts unique products.\n",
        table(
            ("ranked among", *COLUMNS, "chance recall@1", "mean candidates"),
            [
                (name, *(part[n] for n in COLUMNS), part["chance_recall@1"], part["mean_candidates"])
                for name, part in galleries
            ],
        ),
        f"95 % interval of recall@1: {low:.4f} to {high:.4f} (bootstrap over queries, seed {metrics['seed']}). "
        "`recall_by_image` and `map_by_image` count reference images instead of products, as some publications do; "
        "`map` is the mean of 1 / rank, as one product is right.\n",
        "## Denominator",
        f"{metrics['picks']} picks, of which {sum(metrics['skipped'].values())} were left out (reasons below) and "
        f"{metrics['queries']} are counted. Of these, some could not be ranked and count as wrong:\n",
        table(("reason", "queries"), metrics["not_ranked"].items()),
        *_answers(metrics),
    ]
    if len(by_size) > 1:
        parts += [
            "## By products in the container",
            table(
                ("products", "queries", *RECALLS, "chance recall@1"),
                [
                    (f["products"], f["queries"], *(f[n] for n in RECALLS), f["chance_recall@1"])
                    for f in by_size
                ],
            ),
        ]
    parts += [f"![{title}]({name})\n" for name, title in pictures.items()]
    return "\n".join([*parts, closing(dict(metrics))])


def _answers(metrics: Mapping[str, Any]) -> list[str]:
    """Confidence, and the answer "unknown"."""
    names = ("temperature", "queries", "expected_calibration_error", "brier_score")
    parts = [
        "## Confidence of the first product, if it is among those searched",
        table(
            ("", *names),
            [(stage, *(figures[n] for n in names)) for stage, figures in metrics["confidence"].items()],
        ),
        "## Unknown products",
    ]
    figures = metrics.get("open_set")
    if figures is None:
        return [
            *parts,
            "The bundle has no calibration for such queries: see `mca calibrate identification`.\n",
        ]
    return [
        *parts,
        f"Accepted above similarity {figures['threshold']:.4f}, chosen for a false-accept rate of "
        f"{figures['stated_false_accept_rate']:g} on {figures['calibrated_on']}. Here, every query was asked again "
        "without its own product:\n",
        table(
            ("", "rate", "of"),
            [
                ("known, right and accepted", figures["true_accept_rate"], figures["known"]),
                ("known, accepted as another product", figures["accepted_as_another_rate"], figures["known"]),
                ("known, refused", figures["refused_rate"], figures["known"]),
                ("unknown, accepted", figures["false_accept_rate"], figures["unknown"]),
                (
                    f"upper bound of that ({figures['bound_confidence']:.0%}, exact binomial)",
                    figures["false_accept_rate_upper_bound"],
                    figures["unknown"],
                ),
            ],
        ),
    ]
