"""Training of the cascade head as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, normalise
from mca_perception.datasets.loading import training_loader
from mca_perception.segmentation.cascade.config import PRESETS, CascadeConfig
from mca_perception.segmentation.cascade.data import DetectionDataset, collate
from mca_perception.segmentation.cascade.detector import CascadeHead
from mca_perception.segmentation.cascade.postprocess import paste_masks
from mca_perception.segmentation.cascade.targets import DetectionTargets
from mca_perception.segmentation.loading import open_splits
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.validation import MIN_SCORE, Found, Truth, mask_average_precision

__all__ = ["CascadeTask", "cascade_config"]


def cascade_config(recipe: SegmentationRecipe) -> CascadeConfig:
    """The recipe's preset with its classes and number of objects.

    The score threshold is low: which scores to trust is decided after training, on the validation split.
    """
    preset = PRESETS[recipe.cascade]
    selection = replace(preset.selection, max_objects=recipe.max_objects, score_threshold=MIN_SCORE)
    return replace(preset, labels=recipe.labels, selection=selection)


class CascadeTask:
    """Cascade Mask R-CNN on an ARMBench-format folder."""

    name = "segmentation"

    def __init__(self, recipe: SegmentationRecipe, embed_dim: int, seed: int) -> None:
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        self.head = CascadeHead(embed_dim, cascade_config(recipe))
        train, validation, self.skipped = open_splits(recipe, seed)
        self.dataset, self.validation = DetectionDataset(train), DetectionDataset(validation)

    def batches(self, seed: int) -> Iterable[tuple[Tensor, list[DetectionTargets]]]:
        """One pass over the training images in random order."""
        return training_loader(
            self.dataset,
            self.recipe.batch_size,
            seed=seed,
            workers=self.recipe.workers,
            collate=collate,
        )

    def losses(
        self, backbone: Backbone, batch: tuple[Tensor, list[DetectionTargets]], device: torch.device
    ) -> dict[str, Tensor]:
        """Proposal, class, box and mask losses of a batch."""
        images, targets = batch
        features = backbone(normalise(images, device, backbone.normalisation))["encoder_out"]
        return self.head.losses(features, self.recipe.input_size, [truth.to(device) for truth in targets])

    @torch.inference_mode()
    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Mask average precision on the validation images, at the network's resolution."""
        return mask_average_precision(self._evaluated(backbone, device), self.recipe.labels)

    def _evaluated(self, backbone: Backbone, device: torch.device) -> Iterator[tuple[Found, Truth]]:
        size = self.recipe.input_size
        for images, targets in DataLoader(self.validation, self.recipe.batch_size, collate_fn=collate):
            features = backbone(normalise(images, device, backbone.normalisation))["encoder_out"]
            for found, truth in zip(self.head.detect(features, size), targets, strict=True):
                masks, boxes = found.masks.cpu().numpy(), found.boxes.cpu().numpy()
                result = (
                    found.scores.cpu().numpy(),
                    found.labels.cpu().numpy(),
                    paste_masks(masks, boxes, size),
                )
                yield result, (truth.masks.numpy(), truth.labels.numpy())
