"""Picks held out of training: by container, so that no validation pick shares its container with a training pick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mca_perception.datasets.armbench import IdentificationIndex, Pick

__all__ = ["held_out_picks", "trainable_picks"]


def trainable_picks(index: IdentificationIndex) -> list[Pick]:
    """Picks that have both sides of a pair: at least one view, and references of their product."""
    return [pick for pick in index.picks if pick.views and index.references.get(pick.product_id)]


def held_out_picks(picks: Sequence[Pick], fraction: float, seed: int) -> tuple[list[Pick], list[Pick]]:
    """Split picks into those to train on and those held out.

    Args:
        picks: from :func:`trainable_picks`.
        fraction: of the containers to hold out, at least one of them; of the picks where all share one container.
        seed: of the choice.
    """
    contents = [tuple(sorted(pick.container)) for pick in picks]
    if len(set(contents)) == 1:
        contents = [(pick.id,) for pick in picks]
    containers = sorted(set(contents))
    order = np.random.default_rng(seed).permutation(len(containers))
    held_out = {containers[i] for i in order[: max(1, round(len(order) * fraction))]}
    split: tuple[list[Pick], list[Pick]] = ([], [])
    for pick, content in zip(picks, contents, strict=True):
        split[content in held_out].append(pick)
    return split
