"""Segmentation as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, normalise
from mca_perception.datasets.loading import training_loader
from mca_perception.segmentation.data import collate
from mca_perception.segmentation.loading import open_splits
from mca_perception.segmentation.losses import SegmentationTargets, refinement_loss, segmentation_loss
from mca_perception.segmentation.model import TOKEN_STRIDE, SegmentationConfig, SegmentationHead
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.validation import stride4_average_precision


class SegmentationTask:
    """The edge head trained on an ARMBench-format folder."""

    name = "segmentation"

    def __init__(self, recipe: SegmentationRecipe, embed_dim: int, seed: int) -> None:
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        self.head = SegmentationHead(
            embed_dim,
            SegmentationConfig(
                labels=recipe.labels,
                hidden_dim=recipe.hidden_dim,
                pyramid_dim=recipe.pyramid_dim,
                mask_dim=recipe.mask_dim,
                refinement_dim=recipe.refinement_dim,
                max_objects=recipe.max_objects,
            ),
        )
        # Convolutions over channels-last maps save a sixth of a training step on a CPU.
        self.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dataset, self.validation, self.skipped = open_splits(recipe, seed)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at the input size."""
        return self.recipe.input_size[0] // TOKEN_STRIDE, self.recipe.input_size[1] // TOKEN_STRIDE

    def batches(self, seed: int) -> Iterable[tuple[Tensor, list[SegmentationTargets]]]:
        """One pass over the training images in random order."""
        return training_loader(
            self.dataset,
            self.recipe.batch_size,
            seed=seed,
            workers=self.recipe.workers,
            collate=collate,
        )

    def losses(
        self, backbone: Backbone, batch: tuple[Tensor, list[SegmentationTargets]], device: torch.device
    ) -> dict[str, Tensor]:
        """Score, mask BCE and mask dice losses of a batch, of the tokens and of the refined candidates."""
        images, targets = batch
        pixels = normalise(images, device, backbone.normalisation).contiguous(
            memory_format=torch.channels_last
        )
        output = self.head(backbone(pixels)["encoder_out"], pixels)
        # Kernels are polynomials in absolute coordinates: their product needs float32.
        with torch.autocast(device.type, enabled=False):
            truths = [truth.to(device) for truth in targets]
            return {
                **segmentation_loss(output, truths, self.grid),
                **refinement_loss(*self.head.refine(output), truths),
            }

    @torch.inference_mode()
    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Mask average precision on the validation images, at the resolution of the mask features."""
        predictions: list[tuple[NDArray[Any], ...]] = []
        truths: list[tuple[NDArray[np.bool_], NDArray[np.int64]]] = []
        for images, targets in DataLoader(self.validation, self.recipe.batch_size, collate_fn=collate):
            pixels = normalise(images, device, backbone.normalisation)
            scores, labels, logits = self.head.predict(backbone(pixels)["encoder_out"], pixels)
            for arrays in zip(scores, labels, logits, strict=True):
                predictions.append(tuple(array.float().cpu().numpy() for array in arrays))
            truths.extend((truth.masks.numpy() > 0.5, truth.labels.numpy()) for truth in targets)
        return stride4_average_precision(predictions, truths, self.recipe.labels)
