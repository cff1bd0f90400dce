"""Train the linear model as a run folder, and make a bundle of it.

A run folder holds ``recipe.yaml``, ``linear.safetensors`` and ``metrics.json``. Training reads every tweet once:
further rows of a tweet differ by their image only. ``dev`` is scored and chooses nothing here; temperature and alert
threshold come from out-of-fold predictions of the training tweets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mca_perception.crisis.bundle import LABELS_FILE, CrisisBundle
from mca_perception.crisis.card import model_card
from mca_perception.crisis.graph import GRAPH_INPUTS, GRAPH_OUTPUTS, linear_graph
from mca_perception.crisis.linear import (
    LinearModel,
    LinearSettings,
    TermCounts,
    count_terms,
    fit_linear,
)
from mca_perception.crisis.metrics import calibration, classification_metrics, confusion_matrix
from mca_perception.crisis.recipe import LinearRecipe, load_linear_recipe
from mca_perception.datasets.crisismmd import LABELS, TASKS, first_of_each_tweet, read_split
from mca_perception.deploy.bundle import MANIFEST_NAME, write_bundle
from mca_perception.errors import BundleError, RecipeError

__all__ = [
    "WEIGHTS",
    "attach_metrics",
    "bundle_linear_run",
    "is_crisis_bundle",
    "settings_of",
    "train_linear",
]

WEIGHTS = "linear.safetensors"
RECIPE = "recipe.yaml"
METRICS = "metrics.json"
SUMMARY = ("n", "weighted_f1", "macro_f1", "accuracy")
LABEL_VERSION = "1"
URGENT = 0.75
PRIORITY_OF = {
    "affected_individuals": URGENT,
    "infrastructure_and_utility_damage": URGENT,
    "not_humanitarian": 0.25,
    "other_relevant_information": 0.5,
    "rescue_volunteering_or_donation_effort": URGENT,
}
"""The rule of the specification, section 10: no label of CrisisMMD is a priority."""
Say = Callable[[str], None]


def settings_of(recipe: LinearRecipe, task: str) -> LinearSettings:
    """What the recipe says about one classifier."""
    section = recipe.crisis_linear
    chosen = section.task(task)
    return LinearSettings(chosen.c, chosen.balance, chosen.min_documents, section.folds, recipe.seed)


def train_linear(recipe: LinearRecipe, out: Path, say: Say = lambda _: None) -> dict[str, Any]:
    """Fit both classifiers and write the run folder.

    Returns:
        Metrics on ``dev`` by task, and what was chosen on ``train``.

    Raises:
        RecipeError: the folder holds a run already.
        DatasetError: the data cannot be used.
    """
    if (out / RECIPE).exists():
        raise RecipeError(f"{out} holds a run already; choose another --out")
    section = recipe.crisis_linear
    tensors: dict[str, NDArray[Any]] = {}
    metrics: dict[str, Any] = {}
    for task in TASKS:
        train, dev = (read_split(section.data, task, split) for split in ("train", "dev"))
        posts = first_of_each_tweet(train.posts)
        say(f"{task}: {len(posts)} training tweets")
        terms = count_terms([post.text for post in posts], section.features)
        labels = np.array([post.label for post in posts], np.int64)
        model, out_of_fold = fit_linear(terms, labels, len(LABELS[task]), settings_of(recipe, task))
        model = model.rounded()
        tensors |= _tensors(task, model)
        metrics[task] = {
            "dev": score(model, count_terms(dev.texts, section.features), dev.labels, LABELS[task]),
            "train_tweets": len(posts),
            "temperature": model.temperature,
            "out_of_fold": _figures(out_of_fold, labels, LABELS[task]),
        }
        if task == "humanitarian":
            metrics["alert_threshold"], metrics["alert_f1_out_of_fold"] = _alert_threshold(
                out_of_fold, labels
            )
        say(f"{task}: weighted F1 on dev {metrics[task]['dev']['weighted_f1']:.4f}")
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS)
    (out / METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    (out / RECIPE).write_text(text, encoding="utf-8")
    return metrics


def score(
    model: LinearModel, terms: TermCounts, labels: NDArray[np.int64], names: tuple[str, ...]
) -> dict[str, Any]:
    """Metrics and calibration of a model on labelled texts."""
    return _figures(model.probabilities(terms), labels, names)


def bundle_linear_run(run: Path, directory: Path, *, version: str) -> CrisisBundle:
    """Make a bundle of a run folder.

    Raises:
        RecipeError: the folder is no finished run.
        BundleError: the target folder holds something else.
    """
    if not (run / WEIGHTS).is_file() or not (run / METRICS).is_file():
        raise RecipeError(f"{run} holds no {WEIGHTS} with {METRICS}; let `mca train` finish there first")
    recipe = load_linear_recipe(run / RECIPE)
    metrics = json.loads((run / METRICS).read_text(encoding="utf-8"))
    tensors = load_file(run / WEIGHTS)
    files: dict[str, str | Path | bytes] = {}
    for task in TASKS:
        model = _model(task, tensors, recipe)
        files[f"{task}.onnx"] = linear_graph(model).SerializeToString()
    files[LABELS_FILE] = yaml.safe_dump(_labels(metrics), sort_keys=False).encode()
    fields = _manifest_fields(recipe, metrics, version)
    files["README.md"] = model_card(fields, _labels(metrics)).encode()
    return write_bundle(directory, fields, files, CrisisBundle)


def attach_metrics(bundle: CrisisBundle, directory: Path, metrics: Sequence[Path]) -> CrisisBundle:
    """Write a bundle again, with evaluation results in its manifest and on its card.

    Args:
        bundle: where the files come from; may be ``directory`` itself.
        directory: bundle folder to write.
        metrics: ``metrics.json`` files of ``mca eval crisismmd``.

    Raises:
        BundleError: a file cannot be read, or is none of those.
    """
    results = dict(bundle.manifest.metrics)
    for path in metrics:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            results[content["task"]] = {name: content[name] for name in SUMMARY}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{path} is no metrics.json of `mca eval crisismmd` ({error}); evaluate again"
            ) from error
    fields = bundle.manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    fields["metrics"] = results
    files: dict[str, str | Path | bytes] = {name: bundle.path / name for name in bundle.manifest.files}
    files["README.md"] = model_card(fields, bundle.labels().model_dump(mode="json")).encode()
    return write_bundle(directory, fields, files, CrisisBundle)


def is_crisis_bundle(path: Path) -> bool:
    """Whether a folder is a bundle of this kind."""
    try:
        CrisisBundle.open(path, verify=False)
    except BundleError:
        return False
    return (path / MANIFEST_NAME).is_file()


def _figures(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], names: tuple[str, ...]
) -> dict[str, Any]:
    matrix = confusion_matrix(labels, probabilities.argmax(1), len(names))
    figures = classification_metrics(matrix, names)
    calibrated = calibration(labels, probabilities)
    figures["expected_calibration_error"] = calibrated["expected_calibration_error"]
    return figures


def _alert_threshold(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Threshold on the priority with the best F1 for posts of an urgent category, in steps of 0.01; and that F1."""
    priorities = np.array([PRIORITY_OF[name] for name in LABELS["humanitarian"]])
    urgent = priorities[labels] >= URGENT
    scores = probabilities @ priorities
    thresholds = np.arange(0.3, 0.75, 0.01)
    alerts = scores[None] >= thresholds[:, None]
    f1 = 2 * (alerts & urgent).sum(1) / np.maximum(alerts.sum(1) + urgent.sum(), 1)
    best = int(f1.argmax())
    return round(float(thresholds[best]), 2), float(f1[best])


def _labels(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": LABEL_VERSION,
        **{task: list(LABELS[task]) for task in TASKS},
        "priority_of": PRIORITY_OF,
        "alert_threshold": metrics["alert_threshold"],
        "alert_threshold_chosen_on": "out-of-fold predictions of the CrisisMMD training tweets, best F1 for the "
        f"categories of priority {URGENT} ({metrics['alert_f1_out_of_fold']:.3f})",
    }


def _manifest_fields(recipe: LinearRecipe, metrics: dict[str, Any], version: str) -> dict[str, Any]:
    section = recipe.model_dump(mode="json")
    section["crisis_linear"]["data"] = recipe.crisis_linear.data.name
    return {
        "name": recipe.name,
        "version": version,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": "Apache-2.0; trained on CrisisMMD v2.0 (CC BY-NC-SA 4.0, research use)",
        "graphs": {
            task: {"file": f"{task}.onnx", "inputs": GRAPH_INPUTS, "outputs": GRAPH_OUTPUTS} for task in TASKS
        },
        "text": {"kind": "linear", "features": recipe.crisis_linear.features.model_dump(mode="json")},
        "training": {"recipe": section, **metrics},
    }


def _tensors(task: str, model: LinearModel) -> dict[str, NDArray[Any]]:
    return {
        f"{task}.idf": model.idf.astype(np.float16),
        f"{task}.weights": model.weights.astype(np.float16),
        f"{task}.bias": model.bias,
        f"{task}.temperature": np.array([model.temperature], np.float32),
    }


def _model(task: str, tensors: dict[str, NDArray[Any]], recipe: LinearRecipe) -> LinearModel:
    return LinearModel(
        config=recipe.crisis_linear.features,
        idf=tensors[f"{task}.idf"].astype(np.float32),
        weights=tensors[f"{task}.weights"].astype(np.float32),
        bias=tensors[f"{task}.bias"],
        temperature=float(tensors[f"{task}.temperature"][0]),
    )
