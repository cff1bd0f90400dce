"""Plots of an identification evaluation, by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["plot_manifest_sizes", "plot_open_set", "plot_reliability"]


def plot_manifest_sizes(bins: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw Recall@1 to @3 over the number of products in the container, with the 95 % interval of Recall@1."""
    figure, axes = _axes()
    names = [f"{entry['products']}\n{entry['queries']} queries" for entry in bins]
    low, high = np.array([entry["recall@1_interval95"] for entry in bins]).T
    axes.fill_between(range(len(bins)), low, high, alpha=0.2, label="95 % interval of recall@1")
    for name, style in (("recall@1", "-"), ("recall@2", "--"), ("recall@3", ":")):
        axes.plot([entry[name] for entry in bins], style, marker="o", label=name)
    axes.plot([entry["chance_recall@1"] for entry in bins], color="grey", label="chance, recall@1")
    axes.set_xticks(range(len(bins)), names, fontsize=8)
    axes.set(title="Recall by products in the container", xlabel="products with references", ylabel="recall")
    _finish(figure, axes, path)


def plot_reliability(confidence: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw how often answers of a confidence are right, before and after calibration."""
    figure, axes = _axes()
    axes.plot((0, 1), (0, 1), ":", color="grey", label="perfectly calibrated")
    for name, figures in confidence.items():
        entries = figures["reliability"]
        stated = [entry["confidence"] for entry in entries]
        error = figures["expected_calibration_error"]
        (line,) = axes.plot(
            stated,
            [entry["accuracy"] for entry in entries],
            marker="o",
            label=f"{name} (temperature {figures['temperature']:.3f}), calibration error {error:.3f}",
        )
        for entry in entries:
            axes.annotate(
                str(entry["n"]),
                (entry["confidence"], entry["accuracy"]),
                xytext=(4, -9),
                textcoords="offset points",
                fontsize=7,
                color=line.get_color(),
            )
    axes.set(
        title="Reliability (numbers: queries)",
        xlabel="stated confidence",
        ylabel="share that is right",
        xlim=(0, 1.02),
    )
    _finish(figure, axes, path)


def plot_open_set(
    curve: tuple[NDArray[np.float64], NDArray[np.float64]], figures: Mapping[str, Any] | None, path: Path
) -> None:
    """Draw true accepts over false accepts of unknown products, with the operating point of the bundle."""
    figure, axes = _axes()
    axes.step(*curve, where="post", label="this data, all thresholds")
    if figures is not None and figures["unknown"] and figures["known"]:
        axes.plot(
            figures["false_accept_rate"],
            figures["true_accept_rate"],
            "o",
            label=f"calibrated threshold {figures['threshold']:.3f}",
        )
        axes.axvline(
            figures["stated_false_accept_rate"], ls=":", color="grey", label="stated false-accept rate"
        )
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set(
        title="Right answers accepted over unknown products accepted",
        xlabel="false-accept rate",
        ylabel="true-accept rate",
        xlim=(0, 1),
    )
    _finish(figure, axes, path)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=120, format="png")
    part.replace(path)
