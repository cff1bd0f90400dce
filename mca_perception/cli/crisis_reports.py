"""What `mca eval crisismmd` and `mca eval trec-is` do and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mca_perception.cli import reports
from mca_perception.cli.plots import can_plot

SUMMARY = ("weighted_f1", "macro_f1", "accuracy", "n")


def evaluate_crisismmd(
    data: Path,
    model: Path,
    out: Path,
    *,
    task: str,
    split: str,
    agreed: bool,
    baseline: Path | None,
    seed: int,
) -> None:
    """Score a bundle or a run on a split; write metrics.json, predictions.csv, report.md and the plots."""
    from mca_perception.cli.crisis_models import open_model
    from mca_perception.cli.crisis_plots import plot_confusion, plot_reliability
    from mca_perception.crisis.evaluation import PREDICTIONS, compare, evaluate_posts
    from mca_perception.datasets.crisismmd import read_split

    posts = read_split(data, task, split, agreed=agreed)
    classifier, facts = open_model(model)
    reports.new_folder(out)
    with reports.progress_bar() as progress:
        result = evaluate_posts(classifier, posts, progress=progress)
    metrics = {
        "task": f"crisismmd-{task}-{split}",
        **result.metrics,
        "data": {"folder": data.name, "file": posts.path.name, "split": split, "agreed": agreed},
        "model": facts,
        **reports.environment(("matplotlib",)),
    }
    if baseline is not None:
        metrics["against_baseline"] = compare(result, baseline, seed=seed)
    if can_plot():
        title = f"{task}, {split}"
        plot_confusion(metrics["confusion_matrix"], posts.label_names, title, out / "confusion_matrix.png")
        plot_reliability(metrics["calibration"], title, out / "reliability.png")
    reports.write_text(out / PREDICTIONS, result.to_csv())
    reports.write_text(out / "report.md", crisismmd_report(metrics))
    reports.write_json(out / "metrics.json", metrics)
    typer.echo(f"{reports.summary(metrics, SUMMARY)} -> {out / 'report.md'}")
    if (against := metrics.get("against_baseline")) is not None:
        low, high = against["interval95"]
        typer.echo(
            f"weighted F1 against {against['baseline']}: {against['weighted_f1_difference']:+.4f}, "
            f"95 % interval {low:+.4f} to {high:+.4f}"
        )


def crisismmd_report(metrics: dict[str, Any]) -> str:
    """Markdown report of one split."""
    model, calibration = metrics["model"], metrics["calibration"]
    classes = metrics["classes"].items()
    lines = [
        f"# {metrics['task']}\n",
        f"Model {model['name']} {model['version']} (`{model['fingerprint']}`); {metrics['data']['file']}.\n",
        reports.table(SUMMARY, [[metrics[name] for name in SUMMARY]]),
        "## Classes\n",
        reports.table(
            ("class", "posts", "precision", "recall", "F1"),
            [(name, f["n"], f["precision"], f["recall"], f["f1"]) for name, f in classes],
        ),
        "## Events\n",
        reports.table(
            ("event", *SUMMARY), [(event, *(f[n] for n in SUMMARY)) for event, f in metrics["events"].items()]
        ),
        "## Calibration\n",
        reports.table(
            ("expected calibration error", "Brier score", "negative log-likelihood"),
            [[calibration[n] for n in ("expected_calibration_error", "brier", "negative_log_likelihood")]],
        ),
    ]
    if (against := metrics.get("against_baseline")) is not None:
        low, high = against["interval95"]
        lines += [
            "## Against the baseline\n",
            f"Weighted F1 minus that of `{against['baseline']}` on the same posts: "
            f"{against['weighted_f1_difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} (paired bootstrap, "
            f"{against['resamples']:,} resamples, seed {against['seed']}).\n",
        ]
    if can_plot():
        lines.append("![confusion matrix](confusion_matrix.png) ![reliability](reliability.png)\n")
    return "\n".join([*lines, reports.machine(metrics)])


def evaluate_trec_is(
    labels: list[Path], run: Path, out: Path, *, skip_unknown_types: bool, allow_missing_topics: bool
) -> None:
    """Score a run file with the official metrics; write metrics.json and report.md."""
    from mca_perception.crisis.trec_is_metrics import trec_is_metrics
    from mca_perception.datasets.trec_is import read_labels
    from mca_perception.datasets.trec_is_runs import missing_topics, read_run
    from mca_perception.errors import DatasetError

    files = [read_labels(path, skip_unknown_types=skip_unknown_types) for path in labels]
    gold = {(tweet.topic, tweet.tweet_id): tweet for file in files for tweet in file.tweets}
    answers = read_run(run)
    absent = missing_topics(answers, {topic for topic, _ in gold})
    if absent and not allow_missing_topics:
        raise DatasetError(
            f"{run} has no answer for {len(absent)} topic(s), the first is {absent[0]}; answer them, or count them as "
            "negative with --allow-missing-topics"
        )
    figures = trec_is_metrics(list(gold.values()), answers)
    metrics = {
        "task": "trec-is",
        "run": answers.tag,
        **figures,
        "missing_topics": absent,
        "skipped": {reason: count for file in files for reason, count in file.skipped.items()},
        **reports.environment(),
    }
    reports.new_folder(out)
    reports.write_json(out / "metrics.json", metrics)
    rows = [(name, value) for name, value in figures.items()]
    text = f"# TREC-IS, run {answers.tag}\n\n{reports.table(('metric', 'value'), rows)}\n{reports.machine(metrics)}"
    reports.write_text(out / "report.md", text)
    names = ("ndcg_100", "alert_worth_h", "alert_worth_a", "cf1_h", "cf1_a", "cacc", "n")
    typer.echo(f"{reports.summary(metrics, names)} -> {out / 'report.md'}")
