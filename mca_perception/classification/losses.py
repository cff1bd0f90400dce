"""The methods' losses as functions of the representations of a batch's two views."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mca_perception.classification.model import ClassificationHead
from mca_perception.classification.recipe import MethodRecipe
from mca_perception.contrastive import (
    ContrastStatistics,
    InnerForm,
    clce,
    contrast_statistics,
    expected_pair_errors,
    lacvit,
    scl_rhe,
    simclr,
    supcon_out,
)

Stage = Literal["contrast", "classifier", "joint"]


def stage_of(method: MethodRecipe, batches: int) -> Stage:
    """What is trained after so many batches."""
    if not method.two_stages:
        return "joint"
    return "contrast" if batches < method.contrastive_batches else "classifier"


def method_loss(
    head: ClassificationHead, method: MethodRecipe, rows: Tensor, labels: Tensor, stage: Stage
) -> Tensor:
    """Loss of one batch.

    Args:
        head: projection and classifier.
        method: names the loss and its settings.
        rows: ``[2B, D]`` representations, rows i and i + B being views of one image.
        labels: ``[2B]`` int64.
        stage: of the training; the classifier's stage does not reach the encoder where the method freezes it.
    """
    if stage == "contrast":
        assert head.projection is not None
        return _contrast(method, head, head.projection(rows), labels)
    logits = head.classifier(rows.detach() if stage == "classifier" and method.freezes_encoder else rows)
    if method.name == "clce":
        loss, _ = clce(
            logits,
            rows,
            labels,
            method.contrast_weight,
            method.loss_temperature,
            hard_negatives=method.hard_negatives,
            label_smoothing=method.label_smoothing,
        )
        return loss
    with torch.autocast(rows.device.type, enabled=False):
        cross_entropy = F.cross_entropy(logits.float(), labels, label_smoothing=method.label_smoothing)
    if method.name == "ce_supcon":
        contrast = supcon_out(rows, labels, method.loss_temperature)
        return (1 - method.contrast_weight) * cross_entropy + method.contrast_weight * contrast
    return cross_entropy


def statistics_of(
    head: ClassificationHead, method: MethodRecipe, rows: Tensor, labels: Tensor, stage: Stage
) -> ContrastStatistics | None:
    """What a batch was contrasted with; None where nothing is contrasted by its labels.

    Arguments as for :func:`method_loss`. In a distributed run all processes must call it.
    """
    if stage == "classifier" or method.name in ("cross_entropy", "simclr"):
        return None
    form = InnerForm(method.loss_temperature)
    if method.name == "clce" and method.hard_negatives:
        form = InnerForm(method.loss_temperature, beta_neg=1.0)
    elif method.name == "scl_rhe":
        betas = method.beta_positive, method.beta_negative
        form = InnerForm(method.loss_temperature, *betas, *_pair_errors(method, head), sibling_views=True)
    contrasted = rows.detach() if head.projection is None else head.projection(rows.detach())
    return contrast_statistics(contrasted.detach(), labels, form)


def _contrast(method: MethodRecipe, head: ClassificationHead, projected: Tensor, labels: Tensor) -> Tensor:
    temperature = method.loss_temperature
    if method.name == "simclr":
        first, second = projected.chunk(2)
        return simclr(first, second, temperature)
    if method.name == "lacvit":
        return lacvit(projected, labels, temperature)
    if method.name == "supcon":
        return supcon_out(projected, labels, temperature)
    betas = method.beta_positive, method.beta_negative
    return scl_rhe(projected, labels, temperature, *betas, *_pair_errors(method, head), sibling_views=True)


def _pair_errors(method: MethodRecipe, head: ClassificationHead) -> tuple[float, float]:
    """Expected shares of wrong pairs among positives and negatives."""
    return expected_pair_errors(method.label_error, n_classes=max(2, head.classifier.out_features))
