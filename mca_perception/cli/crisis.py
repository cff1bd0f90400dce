"""`mca crisis`: categorise crisis posts, and check the data sets they are trained and scored on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="crisis",
    no_args_is_help=True,
    add_completion=False,
    help="Categorise crisis posts; check CrisisMMD and TREC-IS files.",
)

Model = Annotated[
    Path | None, typer.Option(help="Folder of the model bundle. Default: the shipped models/crisis.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
SkipUnknown = Annotated[
    bool, typer.Option("--skip-unknown-types", help="Leave out types of older ontologies and count them.")
]


@app.command(
    epilog='Example: mca crisis classify --text "Bridge collapsed near the hospital, people trapped"'
)
def classify(
    text: Annotated[str, typer.Option(help="Text of the post.")] = "",
    image: Annotated[list[Path] | None, typer.Option(help="Image of the post; may be repeated.")] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(help="File of posts, one JSON object per line: text, images, post_id, event_id."),
    ] = None,
    model: Model = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the answers of --jsonl. Default: standard output.")
    ] = None,
) -> None:
    """Categorise one post, or a file of posts; answers are JSON, one line per post."""
    from mca_perception.cli.crisis_posts import classify_file, classify_one
    from mca_perception.crisis.classifier import CrisisClassifier
    from mca_perception.errors import PostError
    from mca_perception.resources import resource_path

    if (jsonl is not None) == bool(text or image):
        raise PostError("give either --text and --image, or --jsonl")
    classifier = CrisisClassifier.from_bundle(model or resource_path("models/crisis"))
    if jsonl is None:
        typer.echo(json.dumps(classify_one(classifier, text, image or []), ensure_ascii=False))
        return
    categorised, refused = classify_file(classifier, jsonl, out)
    typer.echo(f"{categorised} posts categorised, {refused} refused", err=True)
    if not categorised:
        raise typer.Exit(1)


@app.command("data", epilog="Example: mca crisis data --data data/crisismmd")
def data_(
    data: Annotated[Path, typer.Option(help="Folder with CrisisMMD's split files (.tsv).")],
    as_json: Json = False,
) -> None:
    """Check a copy of CrisisMMD: counts beside the published ones, label maps, missing images, leakage."""
    from mca_perception.cli.crisis_checks import crisismmd_figures, print_crisismmd

    figures = crisismmd_figures(data)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        print_crisismmd(figures)
    if figures["leaks_within_a_task"]:
        raise typer.Exit(1)


@app.command("labels", epilog="Example: mca crisis labels TRECIS-2018-2020B.json.gz")
def labels_(
    path: Annotated[Path, typer.Argument(help="TREC-IS file of assessors' labels, any generation.")],
    skip_unknown_types: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Check a TREC-IS label file: events, tweets, information types, priorities."""
    from mca_perception.datasets.trec_is import read_labels

    file = read_labels(path, skip_unknown_types=skip_unknown_types)
    _print(
        {
            "events": len(file.topics),
            "tweets": len(file.tweets),
            "information_types": file.type_counts(),
            "priorities": file.priority_counts(),
            "skipped": dict(file.skipped),
        },
        as_json,
    )


@app.command("run-file", epilog="Example: mca crisis run-file myrun.jsonl.gz --labels labels.json")
def run_file(
    path: Annotated[
        Path, typer.Argument(help="TREC-IS run file, 2021 (JSON lines) or 2019 (tab separated).")
    ],
    labels: Annotated[
        list[Path] | None, typer.Option(help="Label file whose events must be answered; may be repeated.")
    ] = None,
    skip_unknown_types: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Check a TREC-IS run file against the rules of its format; exit code 1 if events have no answer."""
    from mca_perception.datasets.trec_is import read_labels
    from mca_perception.datasets.trec_is_runs import missing_topics, read_run

    run = read_run(path)
    expected = {
        topic
        for name in labels or []
        for topic in read_labels(name, skip_unknown_types=skip_unknown_types).topics
    }
    absent = missing_topics(run, expected)
    _print(
        {"run": run.tag, "answers": len(run.entries), "events": len(run.topics), "missing_events": absent},
        as_json,
    )
    if absent:
        raise typer.Exit(1)


@app.command(
    "cross-event", epilog="Example: mca crisis cross-event recipes/crisis_linear.yaml --out results/events"
)
def cross_event_(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a linear model.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and report.md.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes of the recipe, section.key=value.", metavar="[KEY=VALUE]..."),
    ] = None,
) -> None:
    """Train on all disasters but one and score on that one, for each in turn."""
    from mca_perception.cli import reports
    from mca_perception.cli.crisis_checks import cross_event_report
    from mca_perception.crisis.cross_event import cross_event
    from mca_perception.crisis.recipe import load_linear_recipe

    settings = load_linear_recipe(recipe, overrides or [])
    reports.new_folder(out)
    with reports.progress_bar() as progress:
        figures = cross_event(settings, progress=progress)
    reports.write_json(out / "metrics.json", {"recipe": settings.name, **figures, **reports.environment()})
    report = cross_event_report(figures)
    reports.write_text(out / "report.md", report)
    typer.echo(report)


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            typer.echo(name if value else f"{name:24}none")
            for key, count in value.items():
                typer.echo(f"  {count:>8}  {key}")
        else:
            typer.echo(f"{name:24}{value if value != [] else 'none'}")
