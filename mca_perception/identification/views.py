"""Which images of a pick are used, and the slot of each: the view before the pick, then those after it.

A network that joins views tells them apart by their slot, so training, evaluation and robots have to agree on it.
"""

from __future__ import annotations

from collections.abc import Collection

from mca_perception.datasets.armbench import VIEWS

__all__ = ["BEFORE_PICK", "choose_views"]

BEFORE_PICK = VIEWS[0]


def choose_views(available: Collection[str], views: int) -> dict[int, str]:
    """Choose up to ``views`` images of a pick.

    Args:
        available: names of the images that there are.
        views: how many to use, from 1; one of them is the view before the pick.

    Returns:
        Names by slot: slot 0 for the view before the pick, if there is one, and the slots from 1 on for those after it
        in their usual order. Slots without an image are left out.
    """
    after = [name for name in VIEWS[1:] if name in available][: views - 1]
    chosen = dict(enumerate(after, start=1))
    return {0: BEFORE_PICK, **chosen} if BEFORE_PICK in available else chosen
