"""Model card of a dual encoder's bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mca_perception.deploy.bundle import MANIFEST_NAME, write_bundle
from mca_perception.errors import BundleError
from mca_perception.retrieval.bundle import RetrievalBundle

__all__ = ["CARD_NAME", "attach_metrics", "is_retrieval_bundle", "model_card"]

CARD_NAME = "README.md"


def is_retrieval_bundle(folder: Path) -> bool:
    """Whether a folder holds the bundle of a dual encoder, whole or not."""
    try:
        return "retrieval" in json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def attach_metrics(bundle: RetrievalBundle, directory: Path, metrics: Sequence[Path]) -> RetrievalBundle:
    """Write ``bundle`` to ``directory`` with evaluation results in its manifest and a fresh model card.

    Args:
        bundle: where the files come from; may be ``directory`` itself.
        directory: bundle folder to write.
        metrics: ``metrics.json`` files of evaluations.

    Raises:
        BundleError: a metrics file is missing or not one.
    """
    fields = bundle.manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    for path in metrics:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            task = str(content.pop("task", path.parent.name))
        except (OSError, ValueError, AttributeError) as error:
            raise BundleError(
                f"metrics file {path} cannot be read ({error}); run `mca eval` again"
            ) from error
        figures = {
            name: value
            for name, value in content.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        fields["metrics"] = {**fields["metrics"], task: figures}
    files: dict[str, str | Path | bytes] = {name: bundle.path / name for name in bundle.manifest.files}
    files[CARD_NAME] = model_card(fields).encode()
    return write_bundle(directory, fields, files, RetrievalBundle)


def model_card(fields: Mapping[str, Any]) -> str:
    """Markdown page that states what the model is, how it was made, and how well it does on what.

    Args:
        fields: contents of the manifest.
    """
    section, backbone, training = fields["retrieval"], fields["backbone"], fields["training"]
    recipe = training.get("recipe", {})
    vocabulary = "in the bundle" if section["tokenizer"].get("file") else "not in the bundle"
    lines = [
        f"# {fields['name']} {fields['version']}",
        "",
        recipe.get("description", "").strip(),
        "",
        f"- {backbone['name']}, {backbone['parameters'] / 1e6:.1f} M parameters; vectors of {section['embedding_dim']} "
        "numbers for images and texts, compared by their dot product.",
        f"- Images are resized to {section['image_size']} x {section['image_size']} pixels; texts are read up to "
        f"{section['text_length']} tokens. Vocabulary {section['tokenizer']['sha256'][:12]}, {vocabulary}.",
        f"- Trained for {training.get('steps', '?')} steps, {training.get('minutes', 0):.1f} minutes on "
        f"{training.get('device', 'unknown')}, seed {recipe.get('seed', '?')}.",
        f"- Licence: {fields['licence']}.",
        "",
        "Use: `mca retrieval index --images DIR --store STORE --model BUNDLE`, then "
        '`mca retrieval search --store STORE "text"`.',
        "",
    ]
    figures = {**training.get("validation", {}), **_flat(fields.get("metrics", {}))}
    if figures:
        lines += ["| figure | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4f} |" for name, value in figures.items()]
        lines.append("")
    return "\n".join(lines)


def _flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{task}: {name}": float(value)
        for task, values in metrics.items()
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
