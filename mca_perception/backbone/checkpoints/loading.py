"""Load a file's weights into a backbone, or its heads' tensors for other models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mca_perception.backbone.checkpoints.fitting import SharedSource, fit
from mca_perception.backbone.checkpoints.layouts import Layout, grouped, sort
from mca_perception.backbone.checkpoints.reading import read_state_dict
from mca_perception.backbone.protocol import Backbone


@dataclass(frozen=True)
class LoadReport:
    """What a load did, key by key.

    Attributes:
        layout: whose file it was.
        loaded: keys copied into the model.
        missing: keys of the model that the file lacks (they keep their values), by group.
        unexpected: keys of the file that the model has no place for, by group (text expert, retrieval head, ...).
        positions_resized: the position table of images was interpolated to the model's grid.
        non_finite: keys that were loaded with infinite values or NaN in them.
    """

    layout: Layout
    loaded: tuple[str, ...]
    missing: dict[str, tuple[str, ...]]
    unexpected: dict[str, tuple[str, ...]]
    positions_resized: bool = False
    non_finite: tuple[str, ...] = ()

    def summary(self, verb: str = "loaded") -> str:
        """The counts in one line."""
        parts = [f"{verb} {_counts(grouped(self.loaded))} ({self.layout} layout)"]
        if self.positions_resized:
            parts.append("position table resized")
        for title, groups in (("missing", self.missing), ("not used", self.unexpected)):
            if groups:
                parts.append(f"{title} {_counts(groups)}")
        if self.non_finite:
            parts.append(
                f"infinite or NaN values in {len(self.non_finite)} tensors, first {self.non_finite[0]}"
            )
        return "; ".join(parts)


def load_checkpoint(
    model: Backbone, path: str | Path, *, init_shared_from: SharedSource | None = None
) -> LoadReport:
    """Load a checkpoint into ``model`` in place: official BEiT-3, timm's ``beit3_*``, or this repository's.

    The position table of images is resized when the grids differ, data types are converted to the model's. Heads and
    experts that the model does not have are reported, not loaded.

    Args:
        model: the backbone.
        path: ``.pth`` or safetensors file.
        init_shared_from: which weights of a file with decoupled attention start a model with shared attention: the
            vision expert's (``A``), the text expert's (``B``) or their mean. Without effect where both are alike.

    Raises:
        CheckpointError: the file cannot be read as tensors only, or does not fit the model (the first differing key
            and both shapes are named). The model is unchanged then.
    """
    contents = sort(read_state_dict(path))
    fitted = fit(contents, model.state_dict(), path, init_shared_from)
    model.load_state_dict(fitted.tensors, strict=False)
    return LoadReport(
        layout=contents.layout,
        loaded=tuple(fitted.tensors),
        missing=fitted.missing,
        unexpected=fitted.unexpected,
        positions_resized=fitted.positions_resized,
        non_finite=non_finite(fitted.tensors),
    )


def read_heads(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file outside its backbone, under the file's keys.

    Official files name them ``vision_head.weight``, ``language_head.weight``, ``logit_scale``, ``mlm_head.*``,
    ``mim_head.*``, ``pooler.*``, ``head.*``, ``fc_norm.*``; our runs ``heads.<task>.*``. Empty for a backbone alone.

    Raises:
        CheckpointError: the file cannot be read as tensors only.
    """
    return {key: tensor.clone() for key, tensor in sort(read_state_dict(path)).heads.items()}


def non_finite(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Keys of tensors with infinite values or NaN."""
    return tuple(key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))


def _counts(groups: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} {len(keys)}" for name, keys in groups.items())
