"""What `mca eval embeddings` measures and writes: how well a bundle's embeddings tell the classes of images apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.classification.evaluation import few_shot, knn_probabilities, nearest_neighbours
from mca_perception.cli import reports
from mca_perception.cli.embedding_plots import plot_cosines, plot_map
from mca_perception.cli.plots import can_plot
from mca_perception.datasets.grocery import is_grocery, read_grocery
from mca_perception.datasets.labelled_images import LabelledImages, read_labelled_images
from mca_perception.errors import DatasetError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.image_embeddings import embed_images

NEIGHBOURS = 10
SHOTS = (1, 5)

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class Embedded(NamedTuple):
    """A bundle's view of the images, and of the catalogue images of their classes where the data has such.

    Attributes:
        facts: of the bundle.
        embeddings: ``[N, E]`` of unit length.
        encoder: ``[N, D]`` mean of the backbone's patch tokens, of any length.
        catalogue: ``[C, E]`` embedding of one catalogue image per class, or None.
        usable: positions of the N readable images.
        skipped: images left out, by reason.
    """

    facts: dict[str, str]
    embeddings: Floats
    encoder: Floats
    catalogue: Floats | None
    usable: Labels
    skipped: dict[str, int]


def evaluate(
    data: Path, model: Path, before: Path | None, out: Path, *, split: str | None, limit: int, seed: int
) -> str:
    """Embed, measure and write; returns a line for the console.

    Raises:
        DatasetError: the data has no two classes, or no class with two images.
        BundleError: a bundle does not identify.
    """
    images, labels = _sample(read_labelled_images(data, split), limit, seed)
    pipelines = [PerceptionPipeline.from_bundle(path) for path in (model, before) if path is not None]
    reports.new_folder(out)
    with reports.progress_bar() as progress:
        views = [_embed(pipeline, images, progress) for pipeline in pipelines]
    after, earlier = views[0], views[1] if before is not None else None
    labels = labels[after.usable]
    named = {"after" if earlier else "model": after} | ({"before": earlier} if earlier else {})
    figures = {name: _measure(view, labels, seed) for name, view in named.items()}
    metrics: dict[str, Any] = {
        "task": "embeddings",
        "model": after.facts,
        "data": {
            "folder": images.root.name,
            "split": split,
            "images": len(labels),
            "classes": len(np.unique(labels)),
        },
        "seed": seed,
        "skipped": dict(images.skipped) | after.skipped,
        "figures": {name: entry for name, (entry, _) in figures.items()},
    }
    if earlier is not None:
        metrics["before"] = earlier.facts
        metrics["change"] = _compare(earlier, after)
    metrics |= reports.environment(("matplotlib", "scikit-learn"))
    pictures = _draw(named, figures, labels, images.classes, out, seed)
    reports.write_json(out / "metrics.json", metrics)
    reports.write_text(out / "report.md", _report(metrics, pictures))
    first = next(iter(metrics["figures"].values()))
    return f"{reports.summary(first['embedding'], ('knn_top1', 'gap', 'auroc', 'isotropy'))} -> {out / 'report.md'}"


def _sample(images: LabelledImages, limit: int, seed: int) -> tuple[LabelledImages, Labels]:
    """At most ``limit`` images, drawn evenly: time grows with the square of their number."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images.paths))[:limit])
    paths = tuple(images.paths[i] for i in chosen)
    labels = images.labels[chosen]
    if len(np.unique(labels)) < 2 or len(np.unique(labels)) == len(labels):
        raise DatasetError(
            f"{images.root} has {len(labels)} images of {len(np.unique(labels))} classes here; embeddings are judged "
            "on at least 2 classes, one of them with 2 images"
        )
    return LabelledImages(images.root, paths, labels, images.classes, images.skipped), labels


def _embed(pipeline: PerceptionPipeline, images: LabelledImages, progress: Any) -> Embedded:
    rows = embed_images(pipeline, images.paths, progress)
    width = rows.statistics.shape[1] // 2
    catalogue = None
    if is_grocery(images.root):
        references = read_grocery(images.root, "train").references
        paths = [references[name][0] for name in images.classes if name in references]
        if len(paths) == len(images.classes):
            catalogue = embed_images(pipeline, paths).embeddings
    facts = reports.model_facts(pipeline.bundle)
    return Embedded(
        facts, rows.embeddings, rows.statistics[:, :width], catalogue, rows.usable, dict(rows.skipped)
    )


def _measure(view: Embedded, labels: Labels, seed: int) -> tuple[dict[str, Any], Any]:
    """Figures of one bundle, and the cosine distributions of its embedding."""
    from mca_perception.contrastive.embedding_metrics import class_cosines

    cosines = class_cosines(view.embeddings, labels)
    figures: dict[str, Any] = {
        "embedding": _space_figures(view.embeddings, labels, seed),
        "encoder_output": _space_figures(view.encoder, labels, seed),
    }
    if view.catalogue is not None:
        figures["catalogue"] = _catalogue_figures(view, labels)
    return figures, cosines


def _space_figures(rows: Floats, labels: Labels, seed: int) -> dict[str, Any]:
    from mca_perception.contrastive.embedding_metrics import (
        class_cosines,
        class_margin,
        isotropy,
        uniformity,
    )

    cosines, margin = class_cosines(rows, labels), class_margin(rows, labels)
    figures: dict[str, Any] = {
        "mean_positive": cosines.mean_positive,
        "mean_negative": cosines.mean_negative,
        "gap": cosines.gap,
        "overlap": cosines.overlap,
        "auroc": cosines.auroc,
        "alignment": 2 - 2 * cosines.mean_positive,
        "uniformity": uniformity(rows),
        "isotropy": isotropy(rows),
        "isotropy_raw": isotropy(rows, normalise=False),
        "intra_class": margin.intra,
        "inter_class": margin.inter,
        "margin": margin.margin,
        "nearer_to_another_class": margin.negative_margin,
        "knn_top1": _knn_top1(rows, labels),
    }
    for shots in SHOTS:
        try:
            result = few_shot(rows, labels, shots, seed=seed)
        except DatasetError:
            continue
        figures[f"5way_{shots}shot"] = result.accuracy
        figures[f"5way_{shots}shot_interval"] = result.interval
        figures[f"5way_{shots}shot_classes"] = result.classes
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def _knn_top1(rows: Floats, labels: Labels) -> float:
    """Share of images that the others around them give their class."""
    names, numbers = np.unique(labels, return_inverse=True)
    found = nearest_neighbours(rows, rows, min(NEIGHBOURS, len(rows) - 1), own=np.arange(len(rows)))
    return float((knn_probabilities(*found, numbers, len(names)).argmax(1) == numbers).mean())


def _catalogue_figures(view: Embedded, labels: Labels) -> dict[str, float]:
    """Photos against catalogue images, as two modalities of one product."""
    from mca_perception.contrastive.alignment_metrics import matching_similarity, modality_gap

    assert view.catalogue is not None
    found, _ = nearest_neighbours(view.embeddings, view.catalogue, 1)
    return {
        "modality_gap": round(modality_gap(view.embeddings, view.catalogue), 5),
        "matching_similarity": round(
            float(matching_similarity(view.embeddings, view.catalogue[labels]).mean()), 5
        ),
        "photo_to_catalogue_top1": round(float((found[:, 0] == labels).mean()), 5),
    }


def _compare(before: Embedded, after: Embedded) -> dict[str, float]:
    """How much of the earlier model's geometry is left."""
    from mca_perception.contrastive.alignment_metrics import linear_cka, mutual_knn_overlap

    k = min(NEIGHBOURS, len(after.embeddings) - 1)
    return {
        "cka_embedding": round(linear_cka(before.embeddings, after.embeddings), 5),
        "cka_embedding_unbiased": round(linear_cka(before.embeddings, after.embeddings, unbiased=True), 5),
        "cka_encoder_output": round(linear_cka(before.encoder, after.encoder), 5),
        "shared_neighbours": round(mutual_knn_overlap(before.embeddings, after.embeddings, k), 5),
    }


def _draw(
    named: dict[str, Embedded],
    figures: dict[str, Any],
    labels: Labels,
    classes: tuple[str, ...],
    out: Path,
    seed: int,
) -> list[str]:
    """Write the pictures that the installed packages allow; returns their names."""  # fmt: skip
    if not can_plot():
        return []
    plot_cosines({name: cosines for name, (_, cosines) in figures.items()}, out / "cosines.png")
    pictures = ["cosines.png"]
    if plot_map(
        {name: view.embeddings for name, view in named.items()}, labels, classes, out / "tsne.png", seed
    ):
        pictures.append("tsne.png")
    return pictures


def _plain(value: float | None) -> float | str | None:
    """What four decimals would show as 0 in powers of ten."""
    return f"{value:.1e}" if value is not None and 0 < abs(value) < 5e-5 else value


def _report(metrics: dict[str, Any], pictures: list[str]) -> str:
    data, model = metrics["data"], metrics["model"]
    names = list(metrics["figures"])
    parts = [
        f"# Embeddings of {data['folder']}\n",
        f"Model {model['name']} {model['version']} (`{model['fingerprint']}`), {data['images']} images of "
        f"{data['classes']} classes, seed {metrics['seed']}.\n",
    ]
    if "before" in metrics:
        earlier = metrics["before"]
        parts += [f"Before: {earlier['name']} {earlier['version']} (`{earlier['fingerprint']}`).\n"]
    for space, title in (
        ("embedding", "Embedding"),
        ("encoder_output", "Encoder output (mean of the patch tokens)"),
        ("catalogue", "Photos against the classes' catalogue images"),
    ):
        columns = [metrics["figures"][name].get(space, {}) for name in names]
        if columns[0]:
            rows = [(figure, *(_plain(column.get(figure)) for column in columns)) for figure in columns[0]]
            parts += [f"## {title}\n", reports.table(("figure", *names), rows)]
    if "change" in metrics:
        parts += ["## Before against after\n", reports.table(("figure", "value"), metrics["change"].items())]
    parts += [
        "Alignment and mean_positive are over pairs of one class, mean_negative over pairs of two. Isotropy is min/max "
        "over both signs of the eigenvectors; raw, it mostly measures norms. knn_top1 leaves the image itself out.\n"
    ]
    parts += [f"![{name.partition('.')[0]}]({name})\n" for name in pictures]
    if "tsne.png" not in pictures:
        parts += ["No map of the images: matplotlib and scikit-learn are needed for it.\n"]
    return "\n".join([*parts, "## Left out\n", reports.left_out(metrics), reports.machine(metrics)])
