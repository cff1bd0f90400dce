"""Any plain Vision Transformer of timm as a backbone."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor

from mca_perception.backbone.inputs import image_grid
from mca_perception.backbone.libraries import import_library
from mca_perception.backbone.protocol import Backbone, Normalisation
from mca_perception.errors import BackboneError

PLAIN = "take a plain ViT, such as vit_*, deit3_*, eva02_* or vit_*_dinov3"
# Rows and columns of patches of the image that shows how a model arranges its tokens.
PROBE_GRID = (2, 3)


class TimmBackbone(Backbone):
    """A Vision Transformer of timm under the contract of a backbone; reads images only.

    The states are those of the model's ``forward_features``, reduced to CLS and patches: register and distillation
    tokens take part in the attention and are left out of the result. For a model without a CLS token the mean of its
    patch states stands in its place.

    Attributes:
        name: timm's name of the model.
        model: the timm model, without its classifier.
    """

    modalities = ("vision",)

    def __init__(self, name: str, model: Any, img_size: int) -> None:
        """Wrap a model that was created with ``dynamic_img_size=True``.

        Args:
            name: timm's name of the model.
            model: the model.
            img_size: side in pixels of the image that its position table was made for.

        Raises:
            BackboneError: the model does not give one token per patch of a single size.
        """
        super().__init__()
        self.name, self.img_size = name, img_size
        self.model: Any = model
        self.patch_size = _patch_size(name, model)
        self.prefix_tokens: int = model.num_prefix_tokens
        self.has_class_token = getattr(model, "cls_token", None) is not None
        self.embed_dim = self._probe()
        mean, std = (tuple(model.pretrained_cfg[key]) for key in ("mean", "std"))
        self.normalisation = Normalisation(mean=mean, std=std)

    def forward(
        self,
        images: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode images ``[N, 3, H, W]``, H and W multiples of the patch size.

        Returns:
            ``encoder_out``: ``[N, 1 + T, D]`` states, CLS (or the mean) first, then ``T = H/patch * W/patch`` patches
            in row-major order.

        Raises:
            BackboneError: no images, images of the wrong shape, or texts.
        """
        if text_ids is not None or text_padding_mask is not None:
            raise BackboneError(
                f"timm:{self.name} reads images only: for texts take a BEiT-3 or a CLIP backbone"
            )
        if images is None:
            raise BackboneError(f"timm:{self.name} got no input: pass images")
        image_grid(images, self.patch_size)
        tokens = self.model.forward_features(images)
        patches = tokens[:, self.prefix_tokens :]
        first = tokens[:, :1] if self.has_class_token else patches.mean(dim=1, keepdim=True)
        return {"encoder_out": torch.cat([first, patches], dim=1)}

    @torch.no_grad()
    def _probe(self) -> int:
        """Encode a small image that is not square, and return the width of a token."""
        rows, columns = PROBE_GRID
        images = torch.zeros(1, 3, rows * self.patch_size, columns * self.patch_size)
        training = self.model.training
        self.model.eval()
        try:
            tokens = self.model.forward_features(images.to(next(self.model.parameters())))
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise BackboneError(
                f"timm:{self.name} does not take {tuple(images.shape)}: {PLAIN} ({error})"
            ) from error
        self.model.train(training)
        if tokens.ndim != 3 or tokens.shape[1] != self.prefix_tokens + rows * columns:
            raise BackboneError(
                f"timm:{self.name} gives {tuple(tokens.shape)} for {rows}x{columns} patches, "
                f"not one token per patch: {PLAIN}"
            )
        return int(tokens.shape[-1])


def create_timm(
    name: str, *, img_size: int = 224, gradient_checkpointing: bool = False, **overrides: Any
) -> TimmBackbone:
    """Build a Vision Transformer of timm.

    Args:
        name: timm's name, such as ``vit_small_patch16_224``.
        img_size: side in pixels of the square image that the position table is made for.
        gradient_checkpointing: recompute the blocks in the backward pass to save memory.
        overrides: further arguments of ``timm.create_model``, such as ``pretrained=True`` or ``drop_path_rate=0.1``.

    Raises:
        BackboneError: timm is not installed, does not know the name or an argument, or the model is no plain ViT that
            takes any image size.
    """
    timm = import_library("timm")
    if (
        not timm.models.is_model(name.partition(".")[0]) and ":" not in name
    ):  # a colon: kept elsewhere, hf-hub:NAME
        known = timm.list_models()
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "see timm.list_models()"
        raise BackboneError(f"timm {timm.__version__} has no model {name!r}; close to it: {close}")
    settings = {"num_classes": 0, "img_size": img_size, "dynamic_img_size": True, **overrides}
    try:
        model = timm.create_model(name, **settings)
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise BackboneError(f"timm:{name} does not take {settings}: {PLAIN} ({error})") from error
    if gradient_checkpointing:
        model.set_grad_checkpointing()
    return TimmBackbone(name, model, img_size)


def _patch_size(name: str, model: Any) -> int:
    """Pixels from one patch token to the next."""
    ratio = getattr(getattr(model, "patch_embed", None), "feat_ratio", None)
    if ratio is None or not isinstance(getattr(model, "num_prefix_tokens", None), int):
        raise BackboneError(
            f"timm:{name} ({type(model).__name__}) has no patch tokens at one stride: {PLAIN}"
        )
    height, width = ratio(as_scalar=False)
    if height != width:
        raise BackboneError(
            f"timm:{name} has patches of {height}x{width} pixels, they must be square: {PLAIN}"
        )
    return int(height)
