"""Heads of pre-training under BEiT-3's names, Magneto's initialisation, and which experts a stage trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mca_perception.backbone import Backbone, BEiT3
from mca_perception.backbone.blocks import SHARED, TEXT, VISION
from mca_perception.contrastive.paired import initial_logit_scale
from mca_perception.errors import RecipeError
from mca_perception.pretraining.recipe import Part, PretrainingRecipe

# Parts of a parameter's name that Magneto scales: specification of the framework, section 2.2.
SCALED = ("fc1", "fc2", "out_proj", "v_proj")


class MatchingHead(nn.Module):
    """Tanh pooler and a two-way classifier: does the text belong to the image?"""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(embed_dim, embed_dim)
        self.classifier = nn.Linear(embed_dim, 2)

    def forward(self, states: Tensor) -> Tensor:
        """``[N, D]`` states of ``<s>`` in fused sequences to ``[N, 2]`` logits, the second for a match."""
        return self.classifier(torch.tanh(self.pooler(states)))


class PretrainingHeads(nn.Module):
    """The heads that a backbone of ``modalities`` can feed; all are built, so that stages hand them on.

    Attributes:
        mim_head: ``[D] -> [K]`` codes of a hidden patch; with vision.
        mlm_head: ``[D] -> [V]`` ids of a hidden token; with text.
        vision_head: projection of the image's CLS state for contrast; this and the rest with both.
        language_head: projection of the text's ``<s>`` state for contrast.
        logit_scale: logarithm of the inverse temperature.
        itm_head: classifier of matching pairs.
    """

    mim_head: nn.Linear
    mlm_head: nn.Linear
    vision_head: nn.Linear
    language_head: nn.Linear
    logit_scale: nn.Parameter
    itm_head: MatchingHead

    def __init__(self, embed_dim: int, *, modalities: tuple[str, ...], vocab_size: int, codes: int) -> None:
        super().__init__()
        if "vision" in modalities:
            self.mim_head = nn.Linear(embed_dim, codes)
        if "text" in modalities:
            self.mlm_head = nn.Linear(embed_dim, vocab_size)
        if {"vision", "text"} <= set(modalities):
            self.vision_head = nn.Linear(embed_dim, embed_dim, bias=False)
            self.language_head = nn.Linear(embed_dim, embed_dim, bias=False)
            self.logit_scale = nn.Parameter(initial_logit_scale())
            self.itm_head = MatchingHead(embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed_images(self, states: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` states of images to ``[N, D]`` float32 embeddings of length 1."""
        return F.normalize(self.vision_head(states[:, 0]).float(), dim=-1)

    def embed_texts(self, states: Tensor) -> Tensor:
        """``[N, L, D]`` states of texts to ``[N, D]`` float32 embeddings of length 1."""
        return F.normalize(self.language_head(states[:, 0]).float(), dim=-1)


def as_multiway(backbone: Backbone) -> BEiT3:
    """The same backbone, known to have a mask token and experts.

    Raises:
        RecipeError: it is of another kind.
    """
    if not isinstance(backbone, BEiT3):
        raise RecipeError("pretraining needs a Multiway Transformer (beit3_* or vlmo_*) as backbone.name")
    return backbone


def initialise(backbone: Backbone, recipe: PretrainingRecipe) -> None:
    """Change a backbone's fresh weights as the recipe says, before any checkpoint is loaded over them."""
    model = as_multiway(backbone)
    if recipe.scale_initialisation and model.config.sub_layernorm:
        scale_sub_layernorm(model)


@torch.no_grad()
def scale_sub_layernorm(model: BEiT3) -> None:
    """Magneto's initialisation for training from scratch: scale the value path by ``sqrt(ln(2 * depth))``, in place.

    Every weight and bias whose name contains ``fc1``, ``fc2``, ``out_proj`` or ``v_proj`` is multiplied once after the
    default initialisation (specification of the framework, section 2.2). A second call scales a second time.
    """
    factor = math.sqrt(math.log(2 * model.config.depth))
    # Of the state dictionary, as its names are the public ones; its tensors are views of the parameters.
    for name, tensor in model.encoder.state_dict().items():
        if any(part in name for part in SCALED):
            tensor.mul_(factor)


def freeze_other_parts(backbone: Backbone, part: Part) -> None:
    """Freeze all but ``part`` of the backbone, as the stages of section 6.5 of the specification do.

    ``vision``: patch embedding, positions, vision experts and shared attention. ``text``: word embedding, positions,
    language experts and the shared final LayerNorm; with decoupled attention also the language side's own attention
    weights, while shared attention stays as it is. ``all`` freezes nothing. What is frozen already stays so.
    """
    for name, parameter in backbone.named_parameters():
        if part != "all" and part not in _parts_training(name):
            parameter.requires_grad_(False)


def _parts_training(name: str) -> tuple[str, ...]:
    keys = name.split(".")
    if "vision_embed" in keys or VISION in keys:
        return ("vision",)
    if "text_embed" in keys or TEXT in keys:
        return ("text",)
    if name.startswith("encoder.layer_norm."):
        return ("vision", "text")
    is_shared = SHARED in keys or "attention_scale" in keys
    return ("vision",) if is_shared else ()
