"""Turn a trained dual encoder into a bundle: a graph per side, weights, vocabulary, manifest and model card."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim

from mca_perception.backbone import Backbone, BEiT3
from mca_perception.backbone.beit3 import UNUSED_POSITIONS
from mca_perception.backbone.blocks import TEXT
from mca_perception.deploy.bundle import write_bundle
from mca_perception.deploy.export import export_graph, largest_difference
from mca_perception.errors import RecipeError
from mca_perception.pretraining.model import PretrainingHeads
from mca_perception.retrieval.bundle import IMAGE_GRAPH, TEXT_GRAPH, RetrievalBundle
from mca_perception.retrieval.card import CARD_NAME, model_card
from mca_perception.training.bundling import round_to_half, run_facts, training_facts
from mca_perception.training.checkpoints import WEIGHTS
from mca_perception.training.loop import validate
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import Recipe
from mca_perception.training.run import load_run

__all__ = ["bundle_dual_encoder", "is_dual_encoder"]

TOLERANCE = 1e-4
"""Largest difference between a graph's vectors, of length 1, and the model's."""
MAX_BATCH = 1024
TOKENIZER_FILE = "tokenizer.spm"
USED_HEADS = ("vision_head.", "language_head.", "logit_scale")


def is_dual_encoder(recipe: Recipe) -> bool:
    """Whether a recipe trains images and texts against each other, and nothing else."""
    others = (recipe.segmentation, recipe.identification, recipe.defects, recipe.crisis)
    section = recipe.pretraining
    contrasts = recipe.retrieval is not None or (section is not None and section.objectives.itc > 0)
    return contrasts and not any(others)


def bundle_dual_encoder(
    run: Path, directory: Path, *, version: str, with_tokenizer: bool = True
) -> RetrievalBundle:
    """Export a finished run of image-text contrast.

    Args:
        run: folder of the run.
        directory: bundle folder, replaced as a whole.
        version: version of the bundle.
        with_tokenizer: copy the vocabulary into the bundle. BEiT-3's is under the MIT licence; leave out one that may
            not be passed on.

    Raises:
        RecipeError: the run is not finished, or a graph does not reproduce the model.
    """
    recipe, model, tasks, log = load_run(run)
    backbone, heads = model.backbone, _heads(model)
    section = recipe.retrieval or recipe.pretraining
    assert section is not None
    assert section.tokenizer is not None
    if not isinstance(backbone, BEiT3):
        raise RecipeError(
            f"{run} trained another backbone than a Multiway Transformer; its sides do not export"
        )
    validation = validate(model, tasks, torch.device("cpu"))
    model.cpu().eval()
    round_to_half(model)
    vocabulary = section.tokenizer.read_bytes()
    size = section.image_size
    with tempfile.TemporaryDirectory() as folder:
        graphs, differences = _export(backbone, heads, size, section.text_length, Path(folder))
        files: dict[str, str | Path | bytes] = {
            entry["file"]: Path(folder) / entry["file"] for entry in graphs.values()
        }
        files[WEIGHTS] = _weights(model)
        if with_tokenizer:
            files[TOKENIZER_FILE] = vocabulary
        facts = training_facts(recipe, {**run_facts(log), "validation": validation}, differences)
        fields = _manifest_fields(recipe, backbone, heads, version)
        fields["graphs"] = graphs
        fields["training"] = facts
        fields["retrieval"] = {
            "image_size": size,
            "text_length": section.text_length,
            "embedding_dim": heads.vision_head.out_features,
            "logit_scale": heads.logit_scale.exp().item(),
            "tokenizer": {
                "sha256": hashlib.sha256(vocabulary).hexdigest(),
                "file": TOKENIZER_FILE if with_tokenizer else None,
            },
        }
        files[CARD_NAME] = model_card(fields).encode()
        return write_bundle(directory, fields, files, RetrievalBundle)


def _heads(model: PerceptionModel) -> PretrainingHeads:
    (heads,) = model.heads.values()
    assert isinstance(heads, PretrainingHeads)
    return heads


class _ImageSide(nn.Module):
    def __init__(self, backbone: Backbone, heads: PretrainingHeads) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, images: Tensor) -> Tensor:
        return self.heads.embed_images(self.backbone(images)["encoder_out"])


class _TextSide(nn.Module):
    def __init__(self, backbone: Backbone, heads: PretrainingHeads) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, text_ids: Tensor, padding_mask: Tensor) -> Tensor:
        states = self.backbone(text_ids=text_ids, text_padding_mask=padding_mask)["encoder_out"]
        return self.heads.embed_texts(states)


def _export(
    backbone: BEiT3, heads: PretrainingHeads, size: int, text_length: int, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Write both graphs; returns their entries for the manifest and their differences from the model."""
    batch, length = Dim("N", min=1, max=MAX_BATCH), Dim("L", min=2, max=text_length)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    words = backbone.text_embed
    assert words is not None
    example = min(text_length, 8)
    ids = torch.randint(4, words.num_embeddings, (3, example), generator=generator)
    padding = torch.zeros(3, example, dtype=torch.bool)
    padding[1, example // 2 :] = True
    jobs: dict[str, tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, Any]]]] = {
        IMAGE_GRAPH: (_ImageSide(backbone, heads), {"images": images}, {"images": {0: batch}}),
        TEXT_GRAPH: (
            _TextSide(backbone, heads),
            {"text_ids": ids, "padding_mask": padding},
            {name: {0: batch, 1: length} for name in ("text_ids", "padding_mask")},
        ),
    }
    graphs, differences = {}, {}
    for name, (module, inputs, dynamic) in jobs.items():
        path = folder / f"{name}.onnx"
        with _only_positions_in_use(backbone, text_length):
            graphs[name] = export_graph(module.eval(), inputs, ("embeddings",), path, dynamic_shapes=dynamic)
            differences[name] = largest_difference(module, inputs, ("embeddings",), path)
        if differences[name] > TOLERANCE:
            raise RecipeError(
                f"graph {name} differs from the model by {differences[name]:.2g} (limit {TOLERANCE}); "
                "nothing was written"
            )
    return graphs, differences


@contextmanager
def _only_positions_in_use(backbone: BEiT3, text_length: int) -> Iterator[None]:
    """Positions that no text reaches would make the graph of a small model a tenth larger."""
    table = backbone.encoder.embed_positions.get_submodule(TEXT)
    assert isinstance(table, nn.Embedding)
    whole = table.weight
    table.weight = nn.Parameter(whole[: UNUSED_POSITIONS + text_length].detach().clone())
    try:
        yield
    finally:
        table.weight = whole


def _weights(model: PerceptionModel) -> bytes:
    """What both sides are made of, as float16; another run can start from it."""
    kept = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.") or name.split(".", 2)[-1].startswith(USED_HEADS)
    }
    return save(kept)


def _manifest_fields(
    recipe: Recipe, backbone: BEiT3, heads: PretrainingHeads, version: str
) -> dict[str, Any]:
    used = (p for name, p in heads.named_parameters() if name.startswith(USED_HEADS))
    return {
        "name": recipe.name,
        "version": version,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "licence": "Apache-2.0",
        "backbone": {
            "name": recipe.backbone.name,
            "img_size": backbone.img_size,
            "patch_size": backbone.patch_size,
            "embed_dim": backbone.embed_dim,
            "parameters": sum(p.numel() for p in (*backbone.parameters(), *used)),
        },
        "preprocessing": {
            "mean": list(backbone.normalisation.mean),
            "std": list(backbone.normalisation.std),
            "channel_order": "RGB",
        },
    }
