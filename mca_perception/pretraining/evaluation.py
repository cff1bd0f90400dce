"""Validation figures of pre-training, each beside what guessing would reach."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from mca_perception.pretraining.metrics import image_text_recall

RETRIEVAL_CUTOFFS = (1, 5)


class Tally:
    """Accuracy of several predictions over batches."""

    def __init__(self) -> None:
        self.correct: Counter[str] = Counter()
        self.targets: dict[str, Counter[int]] = {}

    def add(self, name: str, logits: Tensor, targets: Tensor) -> None:
        """Count a batch of ``[M, C]`` logits against ``[M]`` targets."""
        self.correct[name] += int((logits.argmax(dim=-1) == targets).sum())
        self.targets.setdefault(name, Counter()).update(targets.tolist())

    def metrics(self) -> dict[str, float]:
        """``NAME_accuracy``, and ``NAME_majority``: the accuracy of always giving the most frequent answer."""
        metrics = {}
        for name, targets in self.targets.items():
            total = targets.total()
            if total:
                metrics[f"{name}_accuracy"] = self.correct[name] / total
                metrics[f"{name}_majority"] = max(targets.values()) / total
        return metrics


def retrieval_metrics(images: Tensor, texts: Tensor, labels: Tensor) -> dict[str, float]:
    """Hit rates of retrieval, and of guessing.

    ``tr@k``: an image's text is among the first k of all different texts; ``ir@k``: one of a text's images is among the
    first k of all images. ``tr_chance@k`` and ``ir_chance@k`` are what a random order would reach.

    Args:
        images: ``[N, D]`` unit length.
        texts: ``[N, D]`` unit length; row i belongs to image i.
        labels: ``[N]``, equal where the texts are.
    """
    _, owner, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    first = np.array([int(np.argmax(owner == number)) for number in range(len(counts))])
    similarity = (texts[torch.from_numpy(first).to(texts.device)] @ images.T).cpu().numpy()
    # Texts stand where the metric has images, as it is a text here that several columns belong to.
    hits = image_text_recall(similarity, owner, RETRIEVAL_CUTOFFS)
    metrics = {}
    for k in RETRIEVAL_CUTOFFS:
        metrics[f"tr@{k}"], metrics[f"ir@{k}"] = hits[f"ir@{k}"], hits[f"tr@{k}"]
        metrics[f"tr_chance@{k}"] = min(k, len(counts)) / len(counts)
        metrics[f"ir_chance@{k}"] = float(np.mean([_chance(len(owner), int(n), k) for n in counts]))
    return metrics


def _chance(total: int, relevant: int, k: int) -> float:
    """Probability that a random order of ``total`` has one of ``relevant`` among its first ``k``."""
    return 1 - math.comb(total - relevant, k) / math.comb(total, k) if k <= total else 1.0
