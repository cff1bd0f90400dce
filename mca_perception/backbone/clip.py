"""CLIP as a backbone: from transformers (a local folder or a configuration) or from open_clip (an architecture)."""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mca_perception.backbone.beit3 import resize_patch_positions
from mca_perception.backbone.dual_encoder import DualEncoder, check_modalities
from mca_perception.backbone.libraries import import_library
from mca_perception.backbone.protocol import Normalisation
from mca_perception.errors import BackboneError

if TYPE_CHECKING:
    from transformers import CLIPConfig

OPENAI_NORMALISATION = Normalisation(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
# transformers' marker for CLIP models from before it stored the end token: the end is the highest id of a text.
HIGHEST_ID_ENDS = 2
MAX_JSON_BYTES = 2**20


class TransformersClip(DualEncoder):
    """CLIP from transformers."""

    def _encode_images(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        states: Tensor = self.vision(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
        normalised: Tensor = self.vision.post_layernorm(states)  # transformers applies it to CLS alone
        return normalised

    def _encode_texts(self, text_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        attention_mask = None if padding_mask is None else (~padding_mask).long()
        states: Tensor = self.text(input_ids=text_ids, attention_mask=attention_mask).last_hidden_state
        return states


def create_clip(
    source: str | os.PathLike[str] | CLIPConfig,
    *,
    img_size: int | None = None,
    modalities: Sequence[str] = ("vision",),
    gradient_checkpointing: bool = False,
    **overrides: Any,
) -> TransformersClip:
    """Build CLIP with transformers.

    Args:
        source: folder of a model (config.json and its weights), as ``save_pretrained`` writes it; or a configuration,
            for fresh weights.
        img_size: replaces the image size of a configuration. A folder's position table stays as it is; other image
            sizes are served by bicubic interpolation either way.
        modalities: the towers to build.
        gradient_checkpointing: recompute the blocks in the backward pass to save memory.
        overrides: refused; for other settings pass a configuration.

    Raises:
        BackboneError: transformers is not installed, the folder is no sound CLIP model, or a setting is unknown.
    """
    transformers = import_library("transformers")
    check_modalities(modalities)
    if overrides:
        raise BackboneError(
            f"clip: unknown settings {', '.join(sorted(overrides))}; pass a CLIPConfig instead"
        )
    normalisation = OPENAI_NORMALISATION
    if isinstance(source, str | os.PathLike):
        folder = Path(source)
        name = f"clip:{folder}"
        model = _load_folder(transformers, folder)
        normalisation = _folder_normalisation(folder)
    else:
        name = "clip"
        config: Any = copy.deepcopy(source)
        if img_size is not None:
            config.vision_config.image_size = img_size
        model = transformers.CLIPModel(config)
    if gradient_checkpointing:
        # transformers 5 renamed it
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    vision, text = model.config.vision_config, model.config.text_config
    return TransformersClip(
        name,
        model.vision_model if "vision" in modalities else None,
        model.text_model if "text" in modalities else None,
        widths=(vision.hidden_size, text.hidden_size),
        patch_size=vision.patch_size,
        img_size=vision.image_size,
        max_text_length=text.max_position_embeddings,
        end_id=None if text.eos_token_id == HIGHEST_ID_ENDS else text.eos_token_id,
        normalisation=normalisation,
    )


def _load_folder(transformers: Any, folder: Path) -> Any:
    """Load both towers from a folder, never from a hub."""
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise BackboneError(
            f"{folder} holds a model of type {kind!r}, not 'clip': name a folder of a whole CLIP model"
        )
    try:
        model, info = transformers.CLIPModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BackboneError(f"the CLIP model in {folder} cannot be loaded: {error}") from error
    if info["missing_keys"]:
        first = min(info["missing_keys"])
        raise BackboneError(
            f"the CLIP model in {folder} lacks {len(info['missing_keys'])} weights, first {first}: copy it again"
        )
    return model


def _folder_normalisation(folder: Path) -> Normalisation:
    """Normalisation of the folder's preprocessor, OpenAI's without one."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return OPENAI_NORMALISATION
    settings = _read_json(path)
    values = [
        settings.get(key, default)
        for key, default in zip(("image_mean", "image_std"), OPENAI_NORMALISATION, strict=True)
    ]
    try:
        mean, std = ((float(red), float(green), float(blue)) for red, green, blue in values)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"{path}: image_mean and image_std must be three numbers each") from error
    return Normalisation(mean=mean, std=std)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BackboneError(
            f"{path} does not exist: name a folder that save_pretrained wrote (hub names are not fetched)"
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BackboneError(f"{path} has more than {MAX_JSON_BYTES} bytes: it is no configuration")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object")
    return content


class OpenClip(DualEncoder):
    """CLIP from open_clip."""

    def _encode_images(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        # Not its own forward: that takes one image size only, and pools. Patch dropout is left out, as it would break
        # the order of the patches.
        vision = self.vision
        patches = vision.conv1(images).flatten(2).transpose(1, 2)
        first = vision.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = vision.positional_embedding
        if grid != vision.grid_size:
            positions = torch.cat(
                [positions[:1], resize_patch_positions(positions[1:], vision.grid_size, grid)]
            )
        tokens = torch.cat([first, patches], dim=1) + positions.to(patches.dtype)
        states: Tensor = vision.ln_post(vision.transformer(vision.ln_pre(tokens)))
        return states

    def _encode_texts(self, text_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        # Causal attention never looks at the padding behind a text, so the mask is not needed.
        text, length = self.text, text_ids.shape[1]
        tokens = text.token_embedding(text_ids)
        tokens = tokens + text.positional_embedding[:length].to(tokens.dtype)
        states: Tensor = text.ln_final(text.transformer(tokens, attn_mask=text.attn_mask[:length, :length]))
        return states


class _OpenClipText(nn.Module):
    """The text tower, which open_clip keeps among the attributes of the whole model."""

    attn_mask: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.token_embedding = source.token_embedding
        self.positional_embedding = source.positional_embedding
        self.transformer = source.transformer
        self.ln_final = source.ln_final
        self.register_buffer("attn_mask", source.attn_mask, persistent=False)


def create_open_clip(
    name: str,
    *,
    img_size: int = 224,
    modalities: Sequence[str] = ("vision",),
    gradient_checkpointing: bool = False,
    **overrides: Any,
) -> OpenClip:
    """Build CLIP with open_clip.

    Args:
        name: architecture, such as ``ViT-B-32``.
        img_size: side in pixels of the square image that the position table is made for.
        modalities: the towers to build.
        gradient_checkpointing: recompute the blocks in the backward pass to save memory.
        overrides: further arguments of ``open_clip.create_model``, such as ``pretrained=FILE``.

    Raises:
        BackboneError: open_clip is not installed, does not know the name or an argument, or the towers are not a plain
            ViT and a causal transformer.
    """
    open_clip = import_library("open_clip")
    check_modalities(modalities)
    known = open_clip.list_models()
    if name not in known and ":" not in name:
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "see open_clip.list_models()"
        raise BackboneError(f"open_clip has no model {name!r}; close to it: {close}")
    try:
        model = open_clip.create_model(name, force_image_size=img_size, **overrides)
    except (TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise BackboneError(f"open_clip:{name} cannot be built with {overrides}: {error}") from error
    text = getattr(model, "text", model)
    _check_towers(open_clip, name, model, text)
    if gradient_checkpointing:
        model.set_grad_checkpointing()
    vision = model.visual
    rule, end_id = _pooling(model, text)
    mean, std = (tuple(vision.preprocess_cfg[key]) for key in ("mean", "std"))
    return OpenClip(
        f"open_clip:{name}",
        vision if "vision" in modalities else None,
        _OpenClipText(text) if "text" in modalities else None,
        widths=(vision.class_embedding.shape[0], text.token_embedding.embedding_dim),
        patch_size=vision.patch_size[0],
        img_size=vision.image_size[0],
        max_text_length=text.positional_embedding.shape[0],
        end_id=None if rule == "argmax" else end_id,
        normalisation=Normalisation(mean=mean, std=std),
    )


def _check_towers(open_clip: Any, name: str, model: Any, text: Any) -> None:
    """Refuse towers that are laid out in another way than the original CLIP's."""
    vision = model.visual
    if not isinstance(vision, open_clip.transformer.VisionTransformer) or vision.attn_pool is not None:
        raise BackboneError(
            f"open_clip:{name} has the image tower {type(vision).__name__}, not a plain ViT: take one such as "
            "ViT-B-32, or timm:NAME for a tower of timm"
        )
    plain = text is model or (
        isinstance(text, open_clip.transformer.TextTransformer) and text.cls_emb is None
    )
    if not plain or text.attn_mask is None or _pooling(model, text)[0] not in ("argmax", "eos"):
        raise BackboneError(
            f"open_clip:{name} has a text tower that is not CLIP's causal transformer: take a model such as ViT-B-32"
        )


def _pooling(model: Any, text: Any) -> tuple[str, int]:
    """How the text tower finds the end of a text: its rule, and the end token for the rule "eos"."""
    if text is model:
        return model.text_pool_type, model.text_eos_id
    return text.pool_type, text.eos_id
