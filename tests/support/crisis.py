"""Small data in the formats of CrisisMMD and TREC-IS."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mca_perception.datasets.crisismmd import COLUMNS, LABELS, SPLITS, TASKS, split_file
from mca_perception.datasets.trec_is_runs import TYPES, RunEntry

WORDS = {
    "informative": ["damage", "rescue", "shelter", "flooded", "donate"],
    "not_informative": ["concert", "lunch", "selfie", "football", "weekend"],
    "affected_individuals": ["injured", "missing", "victims", "families"],
    "infrastructure_and_utility_damage": ["bridge", "collapsed", "road", "power"],
    "not_humanitarian": ["concert", "lunch", "selfie", "football"],
    "other_relevant_information": ["forecast", "category", "landfall", "update"],
    "rescue_volunteering_or_donation_effort": ["donate", "volunteers", "rescue", "shelter"],
}
EVENTS = ("hurricane_irma", "srilanka_floods")


def row(tweet: int, label: str, text: str = "some text", /, **changes: str) -> dict[str, str]:
    """One row of a split file; the id of the tweet is made of its number."""
    values = {
        "event_name": EVENTS[tweet // 10 % 2],
        "tweet_id": str(900_000_000_000_000_000 + tweet),
        "image_id": f"{900_000_000_000_000_000 + tweet}_0",
        "tweet_text": text,
        "image": f"data_image/{EVENTS[tweet // 10 % 2]}/1_1_2017/{900_000_000_000_000_000 + tweet}_0.jpg",
        "label": label,
        "label_text": label,
        "label_image": label,
        "label_text_image": "Positive",
    }
    return values | changes


def write_split(
    folder: Path,
    task: str,
    split: str,
    rows: Sequence[dict[str, str]],
    *,
    agreed: bool = True,
    end: str = "\n",
) -> Path:
    """Write rows as the split file of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(COLUMNS), *("\t".join(entry[name] for name in COLUMNS) for entry in rows)]
    path = folder / split_file(task, split, agreed=agreed)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def write_crisismmd(folder: Path, *, rows: int = 60, seed: int = 0) -> Path:
    """Write all six files with tweets whose words tell their class; no tweet is in two of them."""
    generator = random.Random(seed)
    number = 0
    for task in TASKS:
        for split in SPLITS:
            entries = []
            for i in range(rows if split == "train" else rows // 2):
                label = LABELS[task][i % len(LABELS[task])]
                words = [
                    *generator.choices(WORDS[label], k=3),
                    *generator.choices(("the", "in", "today"), k=2),
                ]
                generator.shuffle(words)
                entries.append(row(number, label, " ".join(words)))
                number += 1
            write_split(folder, task, split, entries)
    return folder


def run_entry(topic: str, tweet: int, priority: float, types: Sequence[int] = ()) -> RunEntry:
    """A run's answer that chooses some information types."""
    labels = tuple(int(index in types) for index in range(TYPES))
    return RunEntry(topic, str(900_000_000_000_000_000 + tweet), priority, tuple(map(float, labels)), labels)


def label_event(topic: str, tweets: Sequence[tuple[int, Sequence[str], Any]]) -> dict[str, Any]:
    """An event of a label file of 2019: tweet number, short type names, priority."""
    return {
        "eventid": topic,
        "tweets": [
            {"postID": str(900_000_000_000_000_000 + n), "categories": list(types), "priority": priority}
            for n, types, priority in tweets
        ],
    }
