"""Score a classifier on a CrisisMMD split: all posts, per event, calibration, and against a baseline."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.metrics import (
    calibration,
    classification_metrics,
    confusion_matrix,
    paired_bootstrap,
)
from mca_perception.datasets.crisismmd import CrisisSplit, LabelledPost
from mca_perception.errors import DatasetError

__all__ = ["PREDICTIONS", "Evaluation", "PostClassifier", "compare", "evaluate_posts", "read_predictions"]

PREDICTIONS = "predictions.csv"
BATCH = 256
MAX_PREDICTIONS_BYTES = 512_000_000
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


class PostClassifier(Protocol):
    """Anything that gives class probabilities for posts."""

    def predict(self, posts: Sequence[LabelledPost], split: CrisisSplit) -> NDArray[np.float32]:
        """Probabilities ``[N, C]`` of posts of a split, in the order of its labels."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        split: what was evaluated.
        probabilities: ``[N, C]``.
        metrics: figures for ``metrics.json``.
    """

    split: CrisisSplit
    probabilities: NDArray[np.float32]
    metrics: dict[str, Any]

    @property
    def predictions(self) -> NDArray[np.int64]:
        """Chosen class of every post."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    def to_csv(self) -> str:
        """One line per post: ids, label, prediction and probabilities; what :func:`read_predictions` reads."""
        names = self.split.label_names
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image_id", "event_name", "label", "prediction", *names])
        for post, row in zip(self.split.posts, self.probabilities, strict=True):
            chosen = names[int(row.argmax())]
            writer.writerow(
                [post.image_id, post.event, names[post.label], chosen, *(f"{p:.6f}" for p in row)]
            )
        return stream.getvalue()


def evaluate_posts(
    classifier: PostClassifier, split: CrisisSplit, *, progress: Progress = lambda items, _: items
) -> Evaluation:
    """Classify every post of a split and score the answers."""
    starts = range(0, len(split.posts), BATCH)
    parts = [
        classifier.predict(split.posts[start : start + BATCH], split)
        for start in progress(starts, "classifying")
    ]
    probabilities = np.concatenate(parts)
    labels, predictions = split.labels, probabilities.argmax(1)
    names = split.label_names
    metrics = classification_metrics(confusion_matrix(labels, predictions, len(names)), names)
    return Evaluation(
        split,
        probabilities,
        {
            **metrics,
            "calibration": calibration(labels, probabilities),
            "events": scores_by_event(split, labels, predictions),
            "missing_images": len(split.missing_images()),
            "corrected": dict(split.corrected),
        },
    )


def scores_by_event(
    split: CrisisSplit, labels: NDArray[np.int64], predictions: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Posts, weighted F1, macro F1 and accuracy within each event."""
    events = np.array(split.events)
    names = split.label_names
    table = {}
    for event in sorted(set(split.events)):
        own = events == event
        figures = classification_metrics(confusion_matrix(labels[own], predictions[own], len(names)), names)
        table[event] = {name: figures[name] for name in ("n", "weighted_f1", "macro_f1", "accuracy")}
    return table


def compare(evaluation: Evaluation, baseline: Path, *, seed: int) -> dict[str, Any]:
    """Paired bootstrap of weighted F1 against an earlier evaluation's predictions (10,000 resamples).

    Args:
        evaluation: of the model.
        baseline: folder or file of the other evaluation's predictions.
        seed: of the resamples.

    Raises:
        DatasetError: the file cannot be read, or its posts or labels are others.
    """
    names = evaluation.split.label_names
    path = baseline / PREDICTIONS if baseline.is_dir() else baseline
    theirs = read_predictions(path, names)
    missing = [post.image_id for post in evaluation.split.posts if post.image_id not in theirs]
    if missing or len(theirs) != len(evaluation.split.posts):
        raise DatasetError(
            f"{path} is of other posts ({len(theirs)}, this split has {len(evaluation.split.posts)}); evaluate the "
            "baseline on the same task and split"
        )
    other = [theirs[post.image_id] for post in evaluation.split.posts]
    result = paired_bootstrap(evaluation.split.labels, evaluation.predictions, other, len(names), seed=seed)
    return {
        "baseline": path.parent.name,
        "weighted_f1_difference": result.difference,
        "interval95": list(result.interval95),
        "share_not_better": result.share_not_better,
        "resamples": result.resamples,
        "seed": seed,
    }


def read_predictions(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Predicted class index by image id from a file of :meth:`Evaluation.to_csv`.

    Raises:
        DatasetError: the file is missing, too large, of another task, or names a post twice.
    """
    predictions: dict[str, int] = {}
    for row in _rows(path):
        label = row.get("prediction") or ""
        if label not in names or not row.get("image_id"):
            raise DatasetError(f"{path}: prediction {label[:60]!r} is not one of {', '.join(names)}")
        if row["image_id"] in predictions:
            raise DatasetError(
                f"{path}: image_id {row['image_id'][:60]!r} comes twice; evaluate the baseline again"
            )
        predictions[row["image_id"]] = list(names).index(label)
    return predictions


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        if path.stat().st_size > MAX_PREDICTIONS_BYTES:
            raise DatasetError(
                f"{path} is larger than {MAX_PREDICTIONS_BYTES:,} bytes; it is no file of predictions"
            )
        with path.open(newline="", encoding="utf-8") as stream:
            yield from csv.DictReader(stream)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); give another evaluation's folder") from error
