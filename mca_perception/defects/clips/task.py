"""Defect videos as a task of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mca_perception.backbone import Backbone, normalise
from mca_perception.datasets.armbench_defect_videos import (
    DefectClip,
    clip_frames,
    read_defect_clips,
    sample_clip,
)
from mca_perception.datasets.defect_ids import in_held_out_session
from mca_perception.datasets.loading import training_loader
from mca_perception.defects.clips.metrics import ClipScores, bit_figures
from mca_perception.defects.clips.model import ClipConfig, ClipHead, clip_logits
from mca_perception.defects.clips.recipe import ClipsRecipe
from mca_perception.errors import DatasetError, RecipeError

__all__ = ["ClipSample", "ClipTask", "score_clips"]

_FRAMES_AT_ONCE = 32


class ClipSample(NamedTuple):
    """``frames`` ``[T, 3, S, S]`` uint8 and the two ``bits`` ``[2]`` float32."""

    frames: Tensor
    bits: Tensor


class ClipDataset(Dataset[ClipSample]):
    """Clips with as many frames each, mirrored and exposed at random, all frames of a clip alike."""

    def __init__(self, clips: Sequence[DefectClip], frames: int, size: int) -> None:
        self.clips = clips
        self.frames = frames
        self.size = size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> ClipSample:
        rng = np.random.default_rng((position, torch.initial_seed() % 2**63))
        clip = self.clips[position]
        frames = _resized(sample_clip(clip.video, self.frames), self.size)
        if rng.random() < 0.5:
            frames = frames[:, :, ::-1]
        gains = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
        changed = np.clip(frames * gains, 0, 255).astype(np.uint8)
        return ClipSample(
            torch.from_numpy(changed.transpose(0, 3, 1, 2).copy()),
            torch.tensor(clip.bits, dtype=torch.float32),
        )


class ClipTask:
    """Training on defect videos; sessions are held out for validation and for the threshold."""

    name = "clips"

    def __init__(self, recipe: ClipsRecipe, embed_dim: int, seed: int) -> None:
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        config = ClipConfig(
            recipe.hidden_dim, recipe.frame_size, recipe.dropout, recipe.detail_dim, recipe.frozen_frames
        )
        self.head = ClipHead(embed_dim, config)
        index = read_defect_clips(recipe.data)
        kept = [
            in_held_out_session(clip.session, recipe.validation_fraction, f"clips {seed}")
            for clip in index.train
        ]
        train = [clip for clip, out in zip(index.train, kept, strict=True) if not out]
        self.validation = [clip for clip, out in zip(index.train, kept, strict=True) if out]
        if len(train) < recipe.batch_size or not self.validation:
            raise DatasetError(
                f"{recipe.data} leaves {len(train)} training and {len(self.validation)} validation clips for a batch "
                f"of {recipe.batch_size}; add clips, or change clips.batch_size or clips.validation_fraction"
            )
        self.skipped = {"train": index.skipped}
        train += (recipe.repeat_defects - 1) * [clip for clip in train if any(clip.bits)]
        self.dataset = ClipDataset(train, recipe.frames, recipe.frame_size)
        positives = np.array([clip.bits for clip in train], np.float64).sum(axis=0)
        weights = (len(train) - positives) / np.maximum(positives, 1)
        self.weights = torch.tensor(np.clip(weights, 1, 20), dtype=torch.float32)

    def check_start(self, untouched: Sequence[str]) -> None:
        """Refuse to freeze what knows nothing.

        Args:
            untouched: names of the model's tensors that the run's start did not have.

        Raises:
            RecipeError: frames are to be judged as before, but the start brought no head for them.
        """
        parts = tuple(f"heads.{self.name}.{part}." for part in ("evidence", "classify_frame"))
        if self.recipe.frozen_frames and any(name.startswith(parts) for name in untouched):
            raise RecipeError(
                "clips.frozen_frames needs an init_from with a defect head of the same clips.detail_dim; train "
                "recipes/nano_frames.yaml first, or set it to false"
            )

    def batches(self, seed: int) -> DataLoader[ClipSample]:
        """One pass over the training clips."""
        return training_loader(self.dataset, self.recipe.batch_size, seed=seed, workers=self.recipe.workers)

    def losses(self, backbone: Backbone, batch: ClipSample, device: torch.device) -> dict[str, Tensor]:
        """Binary cross-entropy of the two bits; rare ones weigh more."""
        clips, count = batch.frames.shape[:2]
        frames = normalise(batch.frames.flatten(0, 1), device, backbone.normalisation)
        judgements = self.head.judge(backbone(frames)["encoder_out"], frames)
        logits = clip_logits(self.head(judgements.reshape(clips, count, -1))[0])
        with torch.autocast(device.type, enabled=False):
            weights = self.weights.to(device)
            loss = F.binary_cross_entropy_with_logits(logits, batch.bits.to(device), pos_weight=weights)
        return {"bits": loss}

    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Figures of the held-out clips."""
        scores = score_clips(self, backbone, device, self.validation)
        return {name: value for name, value in bit_figures(scores).items() if value is not None}


@torch.inference_mode()
def score_clips(
    task: ClipTask,
    backbone: Backbone,
    device: torch.device,
    clips: Sequence[DefectClip],
    *,
    progress: Callable[[Sequence[DefectClip]], Iterable[DefectClip]] = iter,
) -> ClipScores:
    """Probabilities of the bits after every frame of every clip, each from that frame and those before it.

    Args:
        task: its head and frame size.
        backbone: makes the frames' features.
        device: where the model is.
        clips: what to score.
        progress: told of every clip.

    Raises:
        DatasetError: a video cannot be read.
    """
    scores = []
    for clip in progress(clips):
        state, found = None, []
        for part in _parts(clip, task.recipe.frame_size):
            images = torch.from_numpy(part.transpose(0, 3, 1, 2).copy())
            frames = normalise(images, device, backbone.normalisation)
            judgements = task.head.judge(backbone(frames)["encoder_out"], frames)
            logits, state = task.head(judgements[None], state)
            found.append(logits[0].sigmoid().cpu().numpy())
        scores.append(np.concatenate(found).astype(np.float64))
    bits = np.array([clip.bits for clip in clips], np.bool_).reshape(-1, 2)
    return ClipScores(scores, bits, [clip.first_visible for clip in clips])


def _parts(clip: DefectClip, size: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of a clip in order, a bounded number at once."""
    part: list[NDArray[np.uint8]] = []
    for frame in clip_frames(clip.video):
        part.append(frame)
        if len(part) == _FRAMES_AT_ONCE:
            yield _resized(np.stack(part), size)
            part = []
    if part:
        yield _resized(np.stack(part), size)


def _resized(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames ``[T, 320, 320, 3]`` reduced to ``[T, S, S, 3]``."""
    reduced = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.asarray(np.stack(reduced), np.uint8)
