"""Plots of a crisis evaluation, by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

__all__ = ["plot_confusion", "plot_reliability"]


def plot_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix: share of each label's posts by prediction, with the counts."""
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(2.5 + 1.1 * len(names), 2 + 0.9 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts[row, column]}\n{share:.0%}"
        axes.text(
            column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black", fontsize=8
        )
    ticks = [fill(name.replace("_", " "), 16) for name in names]
    axes.set_xticks(range(len(names)), ticks, fontsize=7)
    axes.set_yticks(range(len(names)), ticks, fontsize=7)
    axes.set(title=title, xlabel="prediction", ylabel="label")
    _save(figure, path)


def plot_reliability(calibration: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw how often a prediction is right over how sure the model is of it, with the number of posts below."""
    from matplotlib.figure import Figure

    bins = calibration["reliability"]
    confidence = [entry["confidence"] for entry in bins]
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), ":", color="grey", label="perfectly calibrated")
    upper.plot(confidence, [entry["accuracy"] for entry in bins], marker="o", label="model")
    error = calibration["expected_calibration_error"]
    upper.set(
        title=f"{title}, calibration error {error:.3f}", ylabel="share of right predictions", ylim=(0, 1.02)
    )
    upper.legend(fontsize=8)
    lower.bar(confidence, [entry["n"] for entry in bins], width=0.04)
    lower.set(xlabel="probability of the predicted class", ylabel="posts", xlim=(0, 1.02))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=120, format="png")
    part.replace(path)
