"""Labelled-image training as a task of the training loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mca_perception.backbone import Backbone, normalise
from mca_perception.classification.data import ClassBalancedSampler, ViewDataset, Views, hold_out
from mca_perception.classification.losses import method_loss, stage_of, statistics_of
from mca_perception.classification.model import ClassificationHead
from mca_perception.classification.recipe import ClassificationRecipe
from mca_perception.classification.validation import representation_metrics
from mca_perception.classification.views import plain_view
from mca_perception.datasets.images import read_rgb
from mca_perception.datasets.labelled_images import LabelledImages, read_labelled_images
from mca_perception.datasets.loading import training_loader
from mca_perception.errors import DatasetError, RecipeError

_Part = tuple[list[Path], NDArray[np.int64]]

IMAGES_AT_ONCE = 128
# The probe and the neighbours take so many training images at most: validation is done many times.
PROBE_IMAGES = 10_000
# Counting a batch's contrasts costs a forward pass of the loss.
STATISTICS_EVERY = 50


class ClassificationTask:
    """A method of the family on images with a class each, in one or two stages.

    The stage follows from the number of batches seen, which the head keeps: a resumed run goes on in its stage.

    Raises:
        DatasetError: the data cannot be read, or leave less than one batch.
        RecipeError: the image size does not fit the backbone.
    """

    name = "classification"

    def __init__(self, recipe: ClassificationRecipe, backbone: Backbone, seed: int) -> None:
        if recipe.image_size % backbone.patch_size:
            raise RecipeError(
                f"classification.image_size {recipe.image_size} is not a multiple of the patch size "
                f"{backbone.patch_size}"
            )
        self.recipe, self.seed = recipe, seed
        self.every, self.weight = recipe.every, recipe.weight
        images = read_labelled_images(recipe.data, recipe.train_split)
        self.skipped: dict[str, Counter[str]] = {"train": images.skipped}
        self.classes = images.classes
        train, self.held_out = self._parts(images)
        if len(train[0]) < recipe.batch_size:
            raise DatasetError(
                f"{recipe.data} leaves {len(train[0])} training images for a batch of {recipe.batch_size}; add images "
                "or lower classification.batch_size"
            )
        if not self.held_out[0]:
            raise DatasetError(
                f"{recipe.data} leaves no image to validate on; add a second image to some classes or give "
                "classification.validation_split"
            )
        self.dataset = ViewDataset(*train, recipe.image_size, recipe.augmentation)
        self.head = ClassificationHead(backbone.embed_dim, recipe.method, len(self.classes))
        self.statistics: dict[str, float] = {}

    def batches(self, seed: int) -> Iterable[Views]:
        """One pass over the training images, or as many batches of equally many images per class."""
        recipe = self.recipe
        batches: int | ClassBalancedSampler = recipe.batch_size
        if recipe.images_per_class is not None:
            batches = ClassBalancedSampler(
                self.dataset.labels, recipe.batch_size, recipe.images_per_class, seed
            )
        return training_loader(self.dataset, batches, seed=seed, workers=recipe.workers)

    def losses(self, backbone: Backbone, batch: Views, device: torch.device) -> dict[str, Tensor]:
        """The method's loss in its present stage, under the name of the method or ``classifier``."""
        method = self.recipe.method
        stage = stage_of(method, int(self.head.batches))
        self.head.batches += 1
        labels = torch.as_tensor(batch.label).to(device)
        frozen = stage == "classifier" and method.freezes_encoder
        with torch.set_grad_enabled(not frozen):
            rows = self._encode(backbone, torch.cat([batch.first, batch.second]), device)
        loss = method_loss(self.head, method, rows, labels.repeat(2), stage)
        if int(self.head.batches) % STATISTICS_EVERY == 1:
            found = statistics_of(self.head, method, rows, labels.repeat(2), stage)
            self.statistics = {} if found is None else found._asdict()
        return {"classifier" if stage == "classifier" else method.name: loss}

    @torch.inference_mode()
    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Top-1 of the classifier, of a linear probe and of nearest neighbours, and few-shot accuracies.

        ``top1`` is the probe's while a two-stage method has no trained classifier yet; ``train_top1`` is the
        classifier's on training images. ``batch_...`` tells what a recent batch was contrasted with.
        """
        train = self._some_training_images()
        rows, labels = self._represent(backbone, self.held_out, device), self.held_out[1]
        train_rows = self._represent(backbone, train, device)
        metrics = representation_metrics(train_rows, train[1], rows, labels, len(self.classes), self.seed)
        metrics["top1"] = metrics["probe_top1"]
        if stage_of(self.recipe.method, int(self.head.batches)) != "contrast":
            metrics["top1"] = self._accuracy(rows, labels, device)
            metrics["train_top1"] = self._accuracy(train_rows, train[1], device)
        return metrics | {f"batch_{name}": float(value) for name, value in self.statistics.items()}

    def _accuracy(self, rows: NDArray[np.float32], labels: NDArray[np.int64], device: torch.device) -> float:
        """Share of representations ``[N, D]`` that the classifier gives their label."""
        answers = self.head.classifier(torch.from_numpy(rows).to(device)).argmax(1).cpu().numpy()
        return float((answers == labels).mean())

    def _parts(self, images: LabelledImages) -> tuple[_Part, _Part]:
        recipe = self.recipe
        everything: _Part = (list(images.paths), images.labels)
        if recipe.validation_split is not None:
            validation = read_labelled_images(recipe.data, recipe.validation_split, classes=images.classes)
            self.skipped["validation"] = validation.skipped
            return everything, (list(validation.paths), validation.labels)
        train, held_out = hold_out(images.labels, recipe.validation_fraction, self.seed)
        return _chosen(everything, train), _chosen(everything, held_out)

    def _some_training_images(self) -> _Part:
        count = len(self.dataset)
        chosen = np.random.default_rng(self.seed).permutation(count)[:PROBE_IMAGES]
        return _chosen((list(self.dataset.paths), self.dataset.labels), np.sort(chosen))

    def _encode(self, backbone: Backbone, views: Tensor, device: torch.device) -> Tensor:
        """uint8 ``[N, 3, S, S]`` to ``[N, D]``; in chunks, only one chunk's activations are kept (gradient caching)."""

        def encode(chunk: Tensor) -> Tensor:
            images = normalise(chunk, device, backbone.normalisation)
            return self.head(backbone(images)["encoder_out"])

        size = self.recipe.chunk_size
        if size is None or len(views) <= size:
            return encode(views)
        return torch.cat(
            [checkpoint(encode, chunk, use_reentrant=False) for chunk in torch.split(views, size)]
        )

    def _represent(self, backbone: Backbone, part: _Part, device: torch.device) -> NDArray[np.float32]:
        """Representations ``[N, D]`` of images as they are."""
        paths, rows = part[0], []
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            views = [
                plain_view(read_rgb(path, oriented=True), self.recipe.image_size)
                for path in paths[start : start + IMAGES_AT_ONCE]
            ]
            batch = torch.from_numpy(np.stack(views).transpose(0, 3, 1, 2).copy())
            images = normalise(batch, device, backbone.normalisation)
            rows.append(self.head(backbone(images)["encoder_out"]).float().cpu().numpy())
        return np.concatenate(rows)


def _chosen(part: _Part, indices: NDArray[np.int64]) -> _Part:
    return [part[0][i] for i in indices], part[1][indices]
