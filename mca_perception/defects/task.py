"""Defect detection as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, normalise
from mca_perception.datasets.armbench_defects import (
    LABELS,
    DefectIndex,
    DefectPick,
    held_out,
    read_defect_images,
)
from mca_perception.datasets.loading import training_loader
from mca_perception.defects.calibration import HeldOut
from mca_perception.defects.data import DefectDataset, PickSample, pick_label, read_crop
from mca_perception.defects.losses import class_balanced_weights, clue_loss, focal_loss
from mca_perception.defects.metrics import curves, recall_at_fpr
from mca_perception.defects.model import DefectConfig, DefectHead
from mca_perception.defects.recipe import DefectsRecipe
from mca_perception.defects.scores import scores_of
from mca_perception.errors import DatasetError, InvalidImageError

_CROPS_AT_ONCE = 128


class DefectTask:
    """Training on defect images; sessions are held out for validation, and others for the thresholds."""

    name = "defects"

    def __init__(self, recipe: DefectsRecipe, embed_dim: int, seed: int) -> None:
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        self.config = head_config(recipe)
        self.head = DefectHead(embed_dim, self.config)
        index = read_defect_images(recipe.data)
        rest, self.calibration = calibration_part(index, recipe, seed)
        train, self.validation = held_out(rest, recipe.validation_fraction, seed, "validation")
        if len(train) < recipe.batch_size or not self.validation or not self.calibration:
            raise DatasetError(
                f"{recipe.data} leaves {len(train)} training, {len(self.validation)} validation and "
                f"{len(self.calibration)} calibration picks for a batch of {recipe.batch_size}; add picks, or change "
                "defects.batch_size, validation_fraction or calibration_fraction"
            )
        self.skipped = {"train": index.skipped}
        self.dataset = DefectDataset(
            train + (recipe.repeat_defects - 1) * tuple(pick for pick in train if pick.defects),
            self.config,
            views=recipe.views,
            recolour=recipe.recolour,
            turned=recipe.turned,
        )
        labels = np.array([view.label for pick in self.dataset.picks for view in pick.views])
        counts = np.bincount(labels, minlength=len(LABELS)).tolist()
        self.weights = class_balanced_weights(counts, recipe.class_balance)

    def batches(self, seed: int) -> DataLoader[PickSample]:
        """One pass over the training picks."""
        return training_loader(self.dataset, self.recipe.batch_size, seed=seed, workers=self.recipe.workers)

    def losses(self, backbone: Backbone, batch: PickSample, device: torch.device) -> dict[str, Tensor]:
        """Loss of the single images and of the picks, and of the clues in patches where images come with them."""
        present = batch.present.to(device)
        crops = normalise(batch.views[batch.present], device, backbone.normalisation)
        logits, evidence, clues = self.head.explain(backbone(crops)["encoder_out"], crops)
        views = evidence.new_zeros(*present.shape, evidence.shape[-1])
        views[present] = evidence
        labels = batch.labels.to(device)[present]
        picks = torch.as_tensor(batch.label).to(device)
        gamma = self.recipe.focal_gamma
        explained = batch.explained[batch.present]
        with torch.autocast(device.type, enabled=False):
            losses = {
                "image": focal_loss(logits, labels, self.weights, gamma),
                "pick": focal_loss(self.head.views(views, present), picks, self.weights, gamma),
            }
            if self.recipe.clues and explained.any():
                truth = batch.clues[batch.present][explained].to(device)
                losses["clues"] = self.recipe.clues * clue_loss(clues[explained.to(device)], truth)
        return losses

    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Recall of any defect at fixed false-positive rates, and average precision, of held-out images and picks."""
        figures = {}
        for unit, found in self.logits(backbone, device, self.validation).items():
            curve = curves(scores_of(found.logits, 1.0)["combined"], found.labels > 0)
            figures[f"{unit}_average_precision"] = curve.average_precision
            for rate in (0.01, 0.05):
                figures[f"{unit}_recall@fpr{rate}"] = recall_at_fpr(curve, rate)[0] or 0.0
        return figures

    @torch.inference_mode()
    def logits(
        self, backbone: Backbone, device: torch.device, chosen: Sequence[DefectPick]
    ) -> dict[str, HeldOut]:
        """Logits of all images of some picks, and of the picks, without anything random."""
        logits, evidence, labels, groups = [], [], [], []
        for crops, truth, numbers in _read_in_parts(chosen, self.config):
            part = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())
            images = normalise(part, device, backbone.normalisation)
            found = self.head(backbone(images)["encoder_out"], images)
            logits.append(found[0])
            evidence.append(found[1])
            labels += truth
            groups += numbers
        if not logits:
            raise DatasetError("none of the held-out images can be read; check the data folder")
        return self._results(torch.cat(logits), torch.cat(evidence), np.array(labels), np.array(groups))

    def _results(
        self, logits: Tensor, evidence: Tensor, labels: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> dict[str, HeldOut]:
        picks = _per_pick(self.head, evidence, groups)
        numbers = np.unique(groups)
        truth = np.array([pick_label(labels[groups == number].tolist()) for number in numbers])
        return {
            "image": HeldOut(logits.cpu().numpy(), labels, groups),
            "pick": HeldOut(picks.cpu().numpy(), truth, numbers),
        }


def head_config(recipe: DefectsRecipe) -> DefectConfig:
    """Sizes of the head and how its crops are made, of a recipe."""
    return DefectConfig(
        recipe.hidden_dim,
        recipe.queries,
        recipe.blocks,
        recipe.token_dim,
        recipe.dropout,
        recipe.crop_size,
        recipe.margin,
        masked=recipe.masked,
        detail_dim=recipe.detail_dim,
    )


def calibration_part(
    index: DefectIndex, recipe: DefectsRecipe, seed: int
) -> tuple[tuple[DefectPick, ...], tuple[DefectPick, ...]]:
    """Training picks of a recipe without, and those within, the sessions kept for thresholds."""
    return held_out(index.training_part(recipe.split), recipe.calibration_fraction, seed, "calibration")


def _read_in_parts(
    picks: Sequence[DefectPick], config: DefectConfig
) -> Iterator[tuple[list[NDArray[np.uint8]], list[int], list[int]]]:
    """Crops, labels and pick numbers of all readable images, a bounded number at once."""
    crops: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    groups: list[int] = []
    for number, pick in enumerate(picks):
        for view in pick.views:
            try:
                crops.append(read_crop(view, config))
            except InvalidImageError:
                continue
            labels.append(view.label)
            groups.append(number)
            if len(crops) == _CROPS_AT_ONCE:
                yield crops, labels, groups
                crops, labels, groups = [], [], []
    if crops:
        yield crops, labels, groups


def _per_pick(head: DefectHead, evidence: Tensor, groups: NDArray[np.int64]) -> Tensor:
    """Logits ``[P, 3]`` of picks from the evidence ``[N, H]`` of their images."""
    rows: Iterable[Tensor] = (evidence[torch.from_numpy(groups == number)] for number in np.unique(groups))
    return torch.cat(
        [head.views(row[None], torch.ones(1, len(row), dtype=torch.bool, device=row.device)) for row in rows]
    )
