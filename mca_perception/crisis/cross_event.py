"""Out-of-event evaluation: train on some disasters, test on another, which is how a model meets the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.linear import count_terms, fit_linear, fit_margins
from mca_perception.crisis.linear_run import settings_of
from mca_perception.crisis.metrics import classification_metrics, confusion_matrix, weighted_f1
from mca_perception.crisis.recipe import LinearRecipe
from mca_perception.datasets.crisismmd import LABELS, TASKS, first_of_each_tweet, read_split

__all__ = ["cross_event"]

Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def cross_event(recipe: LinearRecipe, *, progress: Progress = lambda items, _: items) -> dict[str, Any]:
    """Leave one event out, for each event of the training tweets and both tasks.

    Returns:
        ``tasks``: per task and event, tweets, weighted and macro F1 of the model that has not seen the event, weighted
        F1 of always choosing that model's commonest training class, and weighted F1 of out-of-fold predictions by
        models that have seen it.
    """
    tables: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        posts = first_of_each_tweet(read_split(recipe.crisis_linear.data, task, "train").posts)
        terms = count_terms([post.text for post in posts], recipe.crisis_linear.features)
        labels = np.array([post.label for post in posts], np.int64)
        events = np.array([post.event for post in posts])
        settings = settings_of(recipe, task)
        _, seen = fit_linear(terms, labels, len(LABELS[task]), settings)
        tables[task] = {}
        for event in progress(sorted(set(events.tolist())), task):
            own = np.flatnonzero(events == event)
            rest = np.flatnonzero(events != event)
            model = fit_margins(terms[rest], labels[rest], len(LABELS[task]), settings)
            tables[task][event] = {
                **_figures(model.probabilities(terms[own]), labels[own], LABELS[task]),
                "majority_f1": _majority_f1(labels[rest], labels[own], len(LABELS[task])),
                "in_event_f1": weighted_f1(labels[own], seen[own].argmax(1), len(LABELS[task])),
            }
    return {"tasks": tables, "data": recipe.crisis_linear.data.name}


def _figures(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], names: tuple[str, ...]
) -> dict[str, Any]:
    metrics = classification_metrics(confusion_matrix(labels, probabilities.argmax(1), len(names)), names)
    return {name: metrics[name] for name in ("n", "weighted_f1", "macro_f1", "accuracy")}


def _majority_f1(train: NDArray[np.int64], test: NDArray[np.int64], classes: int) -> float:
    commonest = int(np.bincount(train, minlength=classes).argmax())
    return weighted_f1(test, np.full(len(test), commonest), classes)
