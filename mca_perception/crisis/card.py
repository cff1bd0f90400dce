"""The model card of a crisis bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["model_card"]

PUBLISHED = """\
| text model | weighted F1, informativeness | weighted F1, humanitarian | split |
|---|---|---|---|
| BERT-base, fine-tuned, best head of each task (published) | 0.8644 | 0.8318 | test |
| Word2Vec, convolutions (published) | 0.8090 | 0.6770 | test |
"""


def model_card(manifest: Mapping[str, Any], labels: Mapping[str, Any]) -> str:
    """Markdown page that states what the model is, how it was made, and how well it does.

    Args:
        manifest: fields of the manifest.
        labels: content of ``labels.yaml``.
    """
    training = manifest["training"]
    own = " | ".join(
        f"{training[task]['dev']['weighted_f1']:.4f}" for task in ("informative", "humanitarian")
    )
    lines = [
        f"# {manifest['name']} {manifest['version']}",
        "",
        str(training["recipe"].get("description", "")).strip(),
        "",
        f"Licence: {manifest['licence']}. Created {manifest['created']}.",
        "",
        "Reads text. Gives the probability that a post is informative, and those of five humanitarian categories; a "
        "priority and an alert follow by a rule from the categories and are flagged `uncalibrated`.",
        "",
        "## How well",
        "",
        PUBLISHED + f"| **this model**, from scratch, no pre-trained weights | {own} | dev |",
        "",
        "The published figures are those of the thesis, on the test split; this model's are on dev.",
        "",
        *_by_class(training),
        "## Labels, priority, alert",
        "",
        f"`labels.yaml` (version {labels['version']}) holds the order of the labels, the rule and the threshold. Alert "
        f"threshold {labels['alert_threshold']}: {labels['alert_threshold_chosen_on']}.",
        "",
        *_metrics(manifest.get("metrics", {})),
        "## Limits",
        "",
        "- Tweets of seven disasters of 2017, nearly all in English; on other events it does worse: see the "
        "cross-event table in `docs/crisis.md`.",
        "- Trained on posts whose text and image were labelled alike; others are harder.",
        "- `affected_individuals` has 9 posts in dev: its figures mean little.",
        "- The priority is no trained priority. Do not dispatch by it alone.",
        "- Weights are float16, without the features seen in one tweet only.",
        "",
    ]
    return "\n".join(lines)


def _by_class(training: Mapping[str, Any]) -> list[str]:
    lines = ["| class | posts in dev | precision | recall | F1 |", "|---|---|---|---|---|"]
    for task in ("informative", "humanitarian"):
        for name, f in training[task]["dev"]["classes"].items():
            lines.append(f"| {name} | {f['n']} | {f['precision']:.3f} | {f['recall']:.3f} | {f['f1']:.3f} |")
    errors = ", ".join(
        f"{task} {training[task]['dev']['expected_calibration_error']:.3f}"
        for task in ("informative", "humanitarian")
    )
    return [*lines, "", f"Expected calibration error on dev: {errors}.", ""]


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not metrics:
        return []
    names = ("n", "weighted_f1", "macro_f1", "accuracy")
    lines = ["## Evaluation", "", f"| evaluation | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for title, values in metrics.items():
        cells = (values.get(name, "-") for name in names)
        lines.append(
            f"| {title} | " + " | ".join(f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells) + " |"
        )
    return [*lines, ""]
