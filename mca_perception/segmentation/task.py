"""Segmentation as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from mca_perception.backbone import normalise
from mca_perception.datasets.coco import CocoSplit
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
        train = CocoSplit.open(recipe.data, subset=recipe.subset, split=recipe.train_split)
        validation = CocoSplit.open(
            recipe.data, subset=recipe.subset, split=recipe.validation_split, limit=recipe.validation_images
        )
        self.skipped = {"train": dict(train.skipped), "validation": dict(validation.skipped)}
        self.dataset = SegmentationDataset(train.records, recipe.labels, recipe.input_size, Augmentation(), seed)
        self.validation = SegmentationDataset(
            validation.records, recipe.labels, recipe.input_size, None
        )

    @property
    def grid(self) -> tuple[int, int]:
        return self.recipe.input_size[0] // TOKEN_STRIDE, self.recipe.input_size[1] // TOKEN_STRIDE

    def batches(self, seed: int) -> Iterable[tuple[Tensor, list[SegmentationTargets]]]:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            self.dataset,
            self.recipe.batch_size,
            sampler=RandomSampler(self.dataset, generator=generator),
            num_workers=self.recipe.workers,
            collate_fn=collate,
            drop_last=True,
            generator=generator,
        )

    def losses(
        self, backbone: nn.Module, batch: tuple[Tensor, list[SegmentationTargets]], device: torch.device
    ) -> dict[str, Tensor]:
        images, targets = batch
        pixels = normalise(images, device)
        output = self.head(backbone(pixels), pixels)
        # Kernels are polynomials in absolute coordinates: their product needs float32.
        with torch.autocast(device.type, enabled=False):
            return segmentation_loss(output, [truth.to(device) for truth in targets], self.grid)

    @torch.inference_mode()
    def validate(self, backbone: nn.Module, device: torch.device) -> dict[str, float]:
        predictions, truths = [], []
        for images, targets in DataLoader(self.validation, self.recipe.batch_size, collate_fn=collate):
            pixels = normalise(images, device)
            scores, labels, logits = self.head.predict(backbone(pixels), pixels)
            for arrays in zip(scores, labels, logits, strict=True):
                predictions.append(tuple(array.float().cpu().numpy() for array in arrays))
            truths.extend((truth.masks.numpy() > 0.5, truth.labels.numpy()) for truth in targets)
        return stride4_average_precision(predictions, truths)


