"""Convert a checkpoint to a safetensors file of this repository."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mca_perception.backbone.checkpoints.detecting import CheckpointInfo, describe
from mca_perception.backbone.checkpoints.fitting import SharedSource, fit
from mca_perception.backbone.checkpoints.layouts import sort
from mca_perception.backbone.checkpoints.loading import LoadReport, non_finite
from mca_perception.backbone.checkpoints.reading import read_state_dict
from mca_perception.backbone.config import CONFIGS
from mca_perception.backbone.registry import create_beit3
from mca_perception.errors import CheckpointError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_IMG_SIZE = 4096
SUFFIX = ".safetensors"


def convert(
    path: str | Path,
    out: str | Path,
    *,
    img_size: int | None = None,
    modalities: tuple[str, ...] | None = None,
    dtype: str | None = None,
    backbone: str | None = None,
    init_shared_from: SharedSource | None = None,
    force: bool = False,
) -> LoadReport:
    """Write a checkpoint as safetensors: the backbone under ``backbone.*``, heads under the names they have.

    The header records the source's layout and SHA-256, and the name, overrides, modalities and image size of the
    configuration that the file fits.

    Args:
        path: the checkpoint.
        out: file to write, atomically; ends in ``.safetensors``.
        img_size: side in pixels of the square image that the position table shall be made for; None keeps it.
        modalities: experts to write; None writes all.
        dtype: one of ``DTYPES``; None keeps the file's.
        backbone: name of the configuration, checked against the file; None takes the one that its sizes tell.
        init_shared_from: make the attention shared, from the vision expert's (``A``), the text expert's (``B``) or the
            mean of both.
        force: overwrite ``out``.

    Returns:
        What was written (``loaded``), and what was not (``missing``, ``unexpected``).

    Raises:
        CheckpointError: the file cannot be used, or ``out`` cannot be written.
        BackboneError: ``backbone`` is unknown, or ``img_size`` does not suit its patches.
    """
    path, out = Path(path), Path(out)
    _check_out(out, force)
    contents = sort(read_state_dict(path))
    info = describe(contents, path)
    modalities = modalities or info.modalities
    if absent := [name for name in modalities if name not in info.modalities]:
        raise CheckpointError(
            f"checkpoint {path} holds no {', '.join(absent)} expert; choose modalities out of "
            f"{', '.join(info.modalities)}"
        )
    name, settings = _configuration(info, path, backbone, modalities)
    settings["img_size"] = _checked_img_size(img_size or info.img_size or CONFIGS[name].img_size)
    if init_shared_from is not None:
        settings["attention"] = "shared"
    with torch.device("meta"):
        target = create_beit3(name, modalities=modalities, **settings).state_dict()
    fitted = fit(contents, target, path, init_shared_from)
    tensors = {f"backbone.{key}": _cast(tensor, dtype) for key, tensor in fitted.tensors.items()}
    tensors |= {key: _cast(tensor, dtype) for key, tensor in contents.heads.items()}
    metadata = {
        "format": "pt",
        "backbone": name,
        "settings": json.dumps(settings),
        "modalities": ",".join(modalities),
        "source_layout": contents.layout,
        "source_sha256": _sha256(path),
    }
    _write(tensors, out, metadata)
    return LoadReport(
        layout=contents.layout,
        loaded=tuple(fitted.tensors),
        missing=fitted.missing,
        unexpected={
            group: keys for group, keys in fitted.unexpected.items() if not set(keys) <= set(contents.heads)
        },
        positions_resized=fitted.positions_resized,
        non_finite=non_finite(tensors),
    )


def _check_out(out: Path, force: bool) -> None:
    if out.suffix != SUFFIX:
        raise CheckpointError(f"{out} must end in {SUFFIX}")
    if not out.parent.is_dir():
        raise CheckpointError(f"{out}: its folder does not exist; make it first")
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder; name a file in it")
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists; choose another name, or overwrite it with --force")


def _configuration(
    info: CheckpointInfo, path: Path, backbone: str | None, modalities: tuple[str, ...]
) -> tuple[str, dict[str, Any]]:
    """Name of the configuration, and the fields in which the file differs from it."""
    name = backbone or info.backbone
    if name is None:
        raise CheckpointError(
            f"checkpoint {path} has the sizes of no known backbone (patch {info.patch_size}, width {info.embed_dim}, "
            f"depth {info.depth}, FFN {info.ffn_dim}); known are {', '.join(CONFIGS)}"
        )
    overrides = dict(info.overrides) if name == info.backbone else {}
    if modalities != info.modalities:
        overrides.pop("vl_experts", None)
    return name, overrides


def _checked_img_size(img_size: int) -> int:
    if not 0 < img_size <= MAX_IMG_SIZE:
        raise CheckpointError(f"image size {img_size} is outside 1 to {MAX_IMG_SIZE} pixels")
    return img_size


def _cast(tensor: Tensor, dtype: str | None) -> Tensor:
    """A copy with memory of its own, as safetensors wants it."""
    if dtype is None or not tensor.is_floating_point():
        return tensor.clone(memory_format=torch.contiguous_format)
    if dtype not in DTYPES:
        raise CheckpointError(f"data type {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    return tensor.to(DTYPES[dtype], copy=True, memory_format=torch.contiguous_format)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _write(tensors: dict[str, Tensor], out: Path, metadata: dict[str, str]) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        temporary.chmod(0o644)
        temporary.replace(out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
