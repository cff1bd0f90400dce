"""Checkpoints as other code writes them: torchscale's BEiT-3 with the official heads, timm's ``beit3_*``."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 600
TASKS = ("pre-training", "retrieval", "classification", "VQA", "NLVR2", "captioning")
WITHOUT_FINAL_NORM = ("classification", "VQA")


def torchscale_model(
    depth: int = 2,
    dim: int = 192,
    heads: int = 3,
    *,
    vocabulary: int = VOCABULARY,
    normalize_output: bool = True,
) -> nn.Module:
    """torchscale's BEiT-3, with biases, LayerNorms and special tokens made random too."""
    pytest.importorskip("torchscale", reason="torchscale is installed by `make test` only")
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    settings = EncoderConfig(
        img_size=224,
        patch_size=16,
        vocab_size=vocabulary,
        multiway=True,
        normalize_output=normalize_output,
        no_output_layer=True,
        encoder_embed_dim=dim,
        encoder_attention_heads=heads,
        encoder_ffn_embed_dim=4 * dim,
        encoder_layers=depth,
    )
    return randomised(BEiT3(settings).eval())


def randomised(model: nn.Module) -> nn.Module:
    """Random values where a fresh model has zeros and ones, so that no mix-up goes unseen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "token" in name:
                parameter.normal_(std=0.5)
    return model


class OfficialModel(nn.Module):
    """The official fine-tuning code's model of a task: attribute ``beit3`` with the task's heads beside it."""

    def __init__(self, beit3: nn.Module, task: str, dim: int) -> None:
        super().__init__()
        self.beit3 = beit3
        if task in ("pre-training", "captioning"):
            self.mlm_head = nn.Linear(dim, VOCABULARY)
        if task == "pre-training":
            self.mim_head = nn.Linear(dim, 8192)
        elif task == "retrieval":
            self.vision_head = nn.Linear(dim, dim, bias=False)
            self.language_head = nn.Linear(dim, dim, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        elif task == "classification":
            self.fc_norm = nn.LayerNorm(dim)
            self.head = nn.Linear(dim, 1000)
        elif task == "VQA":
            self.pooler = nn.ModuleDict({"norm": nn.LayerNorm(dim), "dense": nn.Linear(dim, dim)})
            self.head = nn.Sequential(
                nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, 3129)
            )
        elif task == "NLVR2":
            self.head = nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(4 * dim),
                    "dense1": nn.Linear(4 * dim, 2 * dim),
                    "norm2": nn.LayerNorm(2 * dim),
                    "dense2": nn.Linear(2 * dim, 2),
                }
            )


def save_official(model: nn.Module, path: Path, wrapper: str | None = "model") -> Path:
    """Write a model as the official code does: its weights under ``wrapper`` with the run's arguments beside them."""
    weights = model.state_dict()
    content = (
        weights if wrapper is None else {wrapper: weights, "args": argparse.Namespace(model="beit3", lr=1e-4)}
    )
    torch.save(content, path)
    return path


def largest_difference(ours: nn.Module, theirs: nn.Module, mode: str) -> float:
    """Largest absolute difference between our features and torchscale's, at positions that are not padding."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 224, 224, generator=generator) if mode in ("vision", "fused") else None
    ids, padding = None, None
    keep = torch.ones(2, 197 if images is not None else 0, dtype=torch.bool)
    if mode in ("text", "fused"):
        ids = torch.randint(4, 500, (2, 12), generator=generator)
        padding = torch.arange(12).expand(2, 12) >= torch.tensor([[12], [7]])
        keep = torch.cat([keep, ~padding], dim=1)
    with torch.inference_mode():
        expected = theirs(textual_tokens=ids, visual_tokens=images, text_padding_position=padding)[
            "encoder_out"
        ]
        got: Tensor = ours(images, ids, padding)["encoder_out"]
    return float((got - expected)[keep].abs().max())
