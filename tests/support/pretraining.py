"""What tests of pre-training share: a tiny Multiway Transformer, a tiny tokenizer, a few pairs."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mca_perception.backbone import BEiT3
from mca_perception.backbone.config import BackboneConfig
from mca_perception.pretraining.model import PretrainingHeads
from tests.support.datasets import write_image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 40),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
    "purple": (150, 30, 170),
    "cyan": (40, 210, 220),
}
VOCABULARY = 96
TINY = BackboneConfig(
    patch_size=16,
    embed_dim=32,
    depth=2,
    num_heads=2,
    ffn_dim=64,
    img_size=32,
    modalities=("vision", "text"),
    vocab_size=VOCABULARY,
    max_text_positions=34,
)


def tiny_model(seed: int = 0, **changes: object) -> tuple[BEiT3, PretrainingHeads]:
    """A Multiway Transformer of two small blocks, and heads with 20 visual codes."""
    torch.manual_seed(seed)
    backbone = BEiT3(replace(TINY, **changes))  # type: ignore[arg-type]
    heads = PretrainingHeads(32, modalities=backbone.modalities, vocab_size=VOCABULARY, codes=20)
    return backbone, heads


def write_tokenizer(path: Path) -> Path:
    """Train a SentencePiece model of a few dozen pieces."""
    from sentencepiece import SentencePieceTrainer

    sentences = [
        f"a {colour} box of {kind}" for colour in COLOURS for kind in ("tea", "soap", "rice", "nails")
    ]
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 4),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def write_pairs(folder: Path, *, held_out: int = 0) -> Path:
    """Write eight coloured images with a text each; the last ``held_out`` are of the split ``test``."""
    rng = np.random.default_rng(0)
    lines = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        image = np.clip(np.array(colour) + rng.normal(0, 12, (40, 48, 3)), 0, 255).astype(np.uint8)
        write_image(folder / "images" / f"{name}.png", image)
        split = "test" if number >= len(COLOURS) - held_out else "train"
        lines.append({"image": f"images/{name}.png", "text": f"a {name} box of tea", "split": split})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
