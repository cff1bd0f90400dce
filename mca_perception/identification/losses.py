"""The contrastive losses of the recipe, all as one function of queries, references and products."""

from __future__ import annotations

from torch import Tensor, nn

from mca_perception.contrastive import (
    InfoNCE,
    SigmoidLoss,
    clce,
    expected_pair_errors,
    scl_rhe,
    supcon_out,
    two_views,
)
from mca_perception.contrastive.paired import logit_factor
from mca_perception.identification.recipe import IdentificationRecipe

# Published temperatures: LaCViT and SCL-RHE 0.1, CLCE 0.5.
TEMPERATURES = {"supcon": 0.1, "scl_rhe": 0.1, "clce": 0.5}


class SupervisedPairLoss(nn.Module):
    """A loss on crops by product: query and reference are two crops of the same product.

    Args:
        recipe: names the loss and its settings.
        embedding_dim: width of the embeddings.
        products: number of products to train on.
    """

    def __init__(self, recipe: IdentificationRecipe, embedding_dim: int, products: int) -> None:
        super().__init__()
        self.name = recipe.loss
        self.temperature = recipe.loss_temperature or TEMPERATURES[recipe.loss]
        self.contrast_weight = recipe.contrast_weight
        self.errors = expected_pair_errors(recipe.label_error, n_classes=max(2, products))
        self.classifier = nn.Linear(embedding_dim, products) if self.name == "clce" else None

    def forward(self, queries: Tensor, references: Tensor, products: Tensor) -> Tensor:
        """``[B, E]``, ``[B, E]`` and ``[B]`` int64 to a scalar."""
        rows, labels = two_views(queries, references, products)
        if self.classifier is not None:
            return clce(self.classifier(rows), rows, labels, self.contrast_weight, self.temperature)[0]
        if self.name == "scl_rhe":
            return scl_rhe(rows, labels, self.temperature, 1.0, 1.0, *self.errors)
        return supcon_out(rows, labels, self.temperature)


def create_loss(recipe: IdentificationRecipe, embedding_dim: int, products: int) -> nn.Module:
    """The recipe's loss: ``(queries [B, E], references [B, E], products [B]) -> scalar``."""
    if recipe.loss == "info_nce":
        return InfoNCE()
    if recipe.loss == "sigmoid":
        return SigmoidLoss()
    return SupervisedPairLoss(recipe, embedding_dim, products)


def trained_temperature(loss: nn.Module) -> float:
    """Temperature that the embeddings were trained with."""
    if isinstance(loss, InfoNCE | SigmoidLoss):
        return 1 / float(logit_factor(loss.logit_scale.detach()))
    assert isinstance(loss, SupervisedPairLoss)
    return loss.temperature
