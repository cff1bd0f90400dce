"""Plots of a segmentation evaluation, by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["can_plot", "finish_plot", "new_axes", "plot_by_count", "plot_precision_recall"]


def can_plot() -> bool:
    """Whether matplotlib is installed; it comes with the extra ``train``, which a robot does not need."""
    return find_spec("matplotlib") is not None


def plot_by_count(subsets: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw mask average precision over the number of objects per image.

    Args:
        subsets: entries of ``by_count`` by the name of the subset.
        path: PNG file to write.
    """
    figure, axes = new_axes()
    labels: dict[str, list[str]] = {}
    for name, bins in subsets.items():
        line = None
        for figure_name, title, style in (("mask_map50", "AP50", "-"), ("mask_map75", "AP75", ":")):
            values = [(entry["object_only"] or entry)[figure_name] for entry in bins]
            heights = [np.nan if value is None else value for value in values]
            (line,) = axes.plot(
                heights,
                style,
                marker="o",
                color=line.get_color() if line else None,
                label=f"{name}, {title}",
            )
        for entry in bins:
            labels.setdefault(entry["objects"], []).append(str(entry["images"]))
    axes.set_xticks(range(len(labels)), [f"{bin_}\n{' / '.join(n)} images" for bin_, n in labels.items()])
    axes.set(
        title="Mask average precision by objects per image (class Object)",
        xlabel="objects per image",
        ylabel="average precision",
    )
    finish_plot(figure, axes, path)


def plot_precision_recall(curves: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Draw precision over recall at mask IoU 0.5.

    Args:
        curves: precision at recall 0, 0.01, ..., 1 by category.
        path: PNG file to write.
    """
    figure, axes = new_axes()
    for name, precision in curves.items():
        recall = np.linspace(0, 1, len(precision))
        reached = max(int(np.count_nonzero(precision)), 1)  # beyond the last detection precision is 0
        axes.plot(recall[:reached], precision[:reached], label=f"{name}, AP50 {precision.mean():.3f}")
    axes.set(title="Precision over recall at mask IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1))
    finish_plot(figure, axes, path)


def new_axes() -> tuple[Any, Any]:
    """A figure of the reports' size, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()


def finish_plot(figure: Any, axes: Any, path: Path) -> None:
    """Add limits, grid and legend, and write a figure atomically."""
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(fontsize=8, loc="outside lower center", ncols=min(len(axes.lines), 3))
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=120, format="png")
    part.replace(path)
