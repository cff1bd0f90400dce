"""What validation reports beside the classifier's accuracy: linear probe, nearest neighbours and few-shot episodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mca_perception.classification.evaluation import few_shot, knn_probabilities, nearest_neighbours
from mca_perception.errors import DatasetError

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

NEIGHBOURS = 10
PROBE_PENALTY = 1e-3
PROBE_STEPS = 60
SHOTS = (1, 5)
EPISODES = 600


def linear_probe(train: Floats, train_labels: Labels, rows: Floats, classes: int) -> Labels:
    """Classes that a logistic regression on frozen, standardised representations gives ``rows``.

    Args:
        train: ``[N, D]``.
        train_labels: ``[N]`` class ids from 0.
        rows: ``[M, D]``.
        classes: number of classes.

    Returns:
        ``[M]`` class ids.
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    with torch.inference_mode(False), torch.enable_grad():
        x, y = (torch.from_numpy((part - mean) / deviation) for part in (train, rows))
        target = torch.from_numpy(train_labels)
        weight = torch.zeros(classes, x.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), target)
            loss = loss + PROBE_PENALTY * weight.square().sum()
            torch.autograd.backward(loss)
            return loss

        solver.step(objective)  # type: ignore[no-untyped-call]
        return np.asarray(F.linear(y, weight, bias).argmax(1).numpy(), np.int64)


def representation_metrics(
    train: Floats, train_labels: Labels, rows: Floats, labels: Labels, classes: int, seed: int = 0
) -> dict[str, float]:
    """``probe_top1`` and ``knn_top1`` of ``rows`` from the training images, and few-shot accuracies among ``rows``.

    Few-shot figures carry their 95 % interval in ``..._interval``; they are left out where too few classes have images
    enough.

    Args:
        train: ``[N, D]`` representations of the training images, un-augmented.
        train_labels: ``[N]`` class ids from 0.
        rows: ``[M, D]`` of the images to judge.
        labels: ``[M]``.
        classes: number of classes.
        seed: of the episodes.
    """
    predicted = linear_probe(train, train_labels, rows, classes)
    found = nearest_neighbours(rows, train, min(NEIGHBOURS, len(train)))
    votes = knn_probabilities(*found, train_labels, classes).argmax(1)
    metrics = {
        "probe_top1": float((predicted == labels).mean()),
        "knn_top1": float((votes == labels).mean()),
    }
    return metrics | few_shot_metrics(rows, labels, SHOTS, seed)


def few_shot_metrics(
    rows: Floats, labels: Labels, shots: Sequence[int] = SHOTS, seed: int = 0
) -> dict[str, float]:
    """Accuracy ``5way_Kshot``, ``..._interval`` and ``..._classes`` for every K that the images suffice for.

    Only classes with more than K images take part, so figures for different K may be of different classes.
    """
    metrics = {}
    for count in shots:
        try:
            result = few_shot(rows, labels, count, episodes=EPISODES, seed=seed)
        except DatasetError:
            continue
        metrics[f"5way_{count}shot"] = result.accuracy
        metrics[f"5way_{count}shot_interval"] = result.interval
        metrics[f"5way_{count}shot_classes"] = float(result.classes)
    return metrics
