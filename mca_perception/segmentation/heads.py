"""Which task a segmentation recipe trains."""

from __future__ import annotations

from mca_perception.segmentation.cascade.task import CascadeTask
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.task import SegmentationTask

__all__ = ["create_task"]


def create_task(recipe: SegmentationRecipe, embed_dim: int, seed: int) -> SegmentationTask | CascadeTask:
    """Make the task of the recipe's ``head`` with its data opened.

    Args:
        recipe: settings.
        embed_dim: width of the backbone's tokens.
        seed: of the random changes of training scenes.

    Raises:
        DatasetError: a split cannot be read.
    """
    if recipe.head == "cascade":
        return CascadeTask(recipe, embed_dim, seed)
    return SegmentationTask(recipe, embed_dim, seed)
