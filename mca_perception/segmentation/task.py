"""Segmentation as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from mca_perception.backbone import normalise
from mca_perception.datasets.coco import CocoSplit
from mca_perception.datasets.workers import WORKER_CONTEXT, initialise_worker
from mca_perception.segmentation.data import Augmentation, SegmentationDataset, collate
from mca_perception.segmentation.losses import SegmentationTargets, segmentation_loss
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
                max_objects=recipe.max_objects,
            ),
        )
        # Convolutions over channels-last maps save a sixth of a training step on a CPU.
        self.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train = CocoSplit.open(recipe.data, subset=recipe.subset, split=recipe.train_split)
        validation = CocoSplit.open(
            recipe.data, subset=recipe.subset, split=recipe.validation_split, limit=recipe.validation_images
        )
        self.skipped = {"train": dict(train.skipped), "validation": dict(validation.skipped)}
        self.dataset = SegmentationDataset(
            train.records, recipe.labels, recipe.input_size, Augmentation(), seed
        )
        self.validation = SegmentationDataset(validation.records, recipe.labels, recipe.input_size, None)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens at the input size."""
        return self.recipe.input_size[0] // TOKEN_STRIDE, self.recipe.input_size[1] // TOKEN_STRIDE

    def batches(self, seed: int) -> Iterable[tuple[Tensor, list[SegmentationTargets]]]:
        """One pass over the training images in random order."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            self.dataset,
            self.recipe.batch_size,
            sampler=RandomSampler(self.dataset, generator=generator),
            num_workers=self.recipe.workers,
            collate_fn=collate,
            drop_last=True,
            worker_init_fn=initialise_worker,
            multiprocessing_context=WORKER_CONTEXT if self.recipe.workers else None,
            generator=generator,
        )

    def losses(
        self, backbone: nn.Module, batch: tuple[Tensor, list[SegmentationTargets]], device: torch.device
    ) -> dict[str, Tensor]:
        """Score, mask BCE and mask dice losses of a batch."""
        images, targets = batch
        pixels = normalise(images, device).contiguous(memory_format=torch.channels_last)
        output = self.head(backbone(pixels), pixels)
        # Kernels are polynomials in absolute coordinates: their product needs float32.
        with torch.autocast(device.type, enabled=False):
            return segmentation_loss(output, [truth.to(device) for truth in targets], self.grid)

    @torch.inference_mode()
    def validate(self, backbone: nn.Module, device: torch.device) -> dict[str, float]:
        """Mask average precision on the validation images, at the resolution of the mask features."""
        predictions: list[tuple[NDArray[Any], ...]] = []
        truths: list[tuple[NDArray[np.bool_], NDArray[np.int64]]] = []
        for images, targets in DataLoader(self.validation, self.recipe.batch_size, collate_fn=collate):
            pixels = normalise(images, device)
            scores, labels, logits = self.head.predict(backbone(pixels), pixels)
            for arrays in zip(scores, labels, logits, strict=True):
                predictions.append(tuple(array.float().cpu().numpy() for array in arrays))
            truths.extend((truth.masks.numpy() > 0.5, truth.labels.numpy()) for truth in targets)
        return stride4_average_precision(predictions, truths)
