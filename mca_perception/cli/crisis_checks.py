"""What `mca crisis data` and `mca crisis cross-event` print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mca_perception.cli.reports import table
from mca_perception.datasets.crisismmd import (
    LABELS,
    MERGED,
    SPLITS,
    TASKS,
    CrisisSplit,
    read_split,
    split_file,
)
from mca_perception.datasets.crisismmd_checks import Key, describe, differences, shared_texts, shared_tweets
from mca_perception.errors import DatasetError

__all__ = ["crisismmd_figures", "cross_event_report", "print_crisismmd"]


def crisismmd_figures(data: Path) -> dict[str, Any]:
    """Counts, differences from the published files, label maps and leakage of the split files in a folder.

    Raises:
        DatasetError: none of the files is there, or one is damaged.
    """
    keys = [(task, split) for task in TASKS for split in SPLITS]
    present = [key for key in keys if (data / split_file(*key)).is_file()]
    if not present:
        raise DatasetError(
            f"{data} has none of the files {split_file(*keys[0])} and the like; check the folder"
        )
    splits: dict[Key, CrisisSplit] = {key: read_split(data, *key) for key in present}
    within, across = shared_tweets(splits)
    return {
        "files": [
            {**describe(split), "differs_from_published": differences(split)} for split in splits.values()
        ],
        "absent_files": [split_file(*key) for key in keys if key not in splits],
        "label_map": {"informative": list(LABELS["informative"]), "humanitarian": MERGED},
        "leaks_within_a_task": [_overlap(*entry) for entry in within],
        "shared_across_tasks": [_overlap(*entry) for entry in across],
        "repeated_texts": [
            {
                "split": _name(key),
                "of": _name((key[0], "train")),
                "texts": shared_texts(train.posts, split.posts),
            }
            for key, split in splits.items()
            if key[1] != "train" and (train := splits.get((key[0], "train"))) is not None
        ],
    }


def print_crisismmd(figures: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    rows = []
    for entry in figures["files"]:
        published = "; ".join(entry["differs_from_published"]) or "yes"
        rows.append((entry["file"], entry["rows"], entry["tweets"], entry["missing_images"], published))
    typer.echo(table(("file", "rows", "tweets", "missing images", "as published"), rows))
    for entry in figures["files"]:
        classes = ", ".join(f"{name} {count}" for name, count in entry["classes"].items())
        events = ", ".join(f"{name} {count}" for name, count in entry["events"].items())
        corrected = "".join(
            f"\n  corrected: {count} x {reason}" for reason, count in entry["corrected"].items()
        )
        typer.echo(f"{entry['file']}\n  classes: {classes}\n  events: {events}{corrected}")
    merged = ", ".join(f"{fine} -> {name}" for fine, name in MERGED.items() if fine != name)
    typer.echo(f"\nfine humanitarian labels that are merged: {merged}")
    for name in figures["absent_files"]:
        typer.echo(f"not there: {name}")
    for entry in figures["repeated_texts"]:
        typer.echo(
            f"{entry['texts']} texts of {entry['split']} are in {entry['of']} too, links and case aside"
        )
    for entry in figures["shared_across_tasks"]:
        typer.echo(
            f"{entry['tweets']} tweets of {entry['split']} are in {entry['also_in']}: train the tasks apart"
        )
    for entry in figures["leaks_within_a_task"]:
        typer.echo(f"LEAK: {entry['tweets']} tweets of {entry['split']} are in {entry['also_in']}")
    if not figures["leaks_within_a_task"]:
        typer.echo("no tweet is in two splits of one task")


def cross_event_report(figures: dict[str, Any]) -> str:
    """Markdown tables of :func:`mca_perception.crisis.cross_event.cross_event`."""
    parts = [
        "# Out of event\n",
        "Trained on the other six disasters, scored on all tweets of the one named.\n",
    ]
    for task, rows in figures["tasks"].items():
        names = ("n", "weighted_f1", "macro_f1", "majority_f1", "in_event_f1")
        header = (
            "event",
            "tweets",
            "weighted F1",
            "macro F1",
            "always the commonest class",
            "trained on all events",
        )
        parts += [
            f"## {task}\n",
            table(header, [(event, *(f[n] for n in names)) for event, f in rows.items()]),
        ]
    parts.append(
        "The last column is the model trained on all events, by out-of-fold predictions of the same tweets, so that "
        "the difference to weighted F1 is what the unseen event costs.\n"
    )
    return "\n".join(parts)


def _overlap(split: Key, also_in: Key, tweets: int) -> dict[str, Any]:
    return {"split": _name(split), "also_in": _name(also_in), "tweets": tweets}


def _name(key: Key) -> str:
    return f"{key[0]} {key[1]}"
