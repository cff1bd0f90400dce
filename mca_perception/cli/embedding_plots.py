"""Pictures of embeddings: cosines of pairs, and a map of the images by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["plot_cosines", "plot_map"]

MAPPED_IMAGES = 1500
MAPPED_CLASSES = 20
PERPLEXITY = 30


def plot_cosines(distributions: Mapping[str, Any], path: Path) -> None:
    """Draw the shares of pairs of one class and of two over their cosine, a panel per model.

    Args:
        distributions: :class:`~mca_perception.contrastive.embedding_metrics.CosineDistributions` by name.
        path: PNG file to write.
    """
    figure, panels = _panels(len(distributions), 3.6)
    for axes, (name, found) in zip(panels, distributions.items(), strict=True):
        centres = (found.edges[:-1] + found.edges[1:]) / 2
        for counts, label in ((found.positive_counts, "same class"), (found.negative_counts, "different")):
            axes.fill_between(centres, counts / counts.sum(), alpha=0.45, step="mid", label=label)
        title = f"{name}: gap {found.gap:.3f}, overlap {found.overlap:.3f}, AUROC {found.auroc:.3f}"
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="cosine of two images", ylabel="share of pairs", xlim=(-1, 1))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def plot_map(
    embeddings: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
    path: Path,
    seed: int,
) -> bool:
    """Draw the images of the largest classes as points, near where their embeddings are (t-SNE, cosine).

    Args:
        embeddings: ``[N, D]`` by the model's name.
        labels: ``[N]`` indices into ``classes``.
        classes: names.
        path: PNG file to write.
        seed: of t-SNE and of the choice of images.

    Returns:
        False if scikit-learn is not installed; nothing is drawn then.
    """
    if find_spec("sklearn") is None:
        return False
    from sklearn.manifold import TSNE

    counts = np.bincount(labels)
    largest = np.argsort(-counts, kind="stable")[:MAPPED_CLASSES]
    shown = np.flatnonzero(np.isin(labels, largest))
    shown = np.sort(np.random.default_rng(seed).permutation(shown)[:MAPPED_IMAGES])
    figure, panels = _panels(len(embeddings), 6.4)
    for axes, (name, rows) in zip(panels, embeddings.items(), strict=True):
        perplexity = min(PERPLEXITY, (len(shown) - 1) / 3)
        solver = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
        points = solver.fit_transform(rows[shown].astype(np.float64))
        for number, label in enumerate(sorted(set(labels[shown].tolist()))):
            own = points[labels[shown] == label]
            colour = _colour(number)
            axes.scatter(own[:, 0], own[:, 1], s=9, color=colour)
            axes.annotate(
                classes[label][:18], np.median(own, axis=0), fontsize=7, ha="center", color="black",
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": colour, "alpha": 0.75, "lw": 0.8},
            )  # fmt: skip
        axes.set_title(f"{name}: t-SNE of {len(shown)} images, perplexity {perplexity:.0f}", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    _save(figure, path)
    return True


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](number % 20)


def _panels(count: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * height * count if height > 5 else 6 * count, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=120, format="png")
    part.replace(path)
