"""Candidates of two runtimes are compared as sets: order and ties do not count, everything else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.segmentation.comparison import largest_candidate_difference

Arrays = dict[str, NDArray[Any]]


def change(name: str, place: int, value: float) -> Callable[[Arrays], Arrays]:
    """One candidate of the second image, changed by ``value``."""

    def changed(arrays: Arrays) -> Arrays:
        copy = arrays[name].copy()
        copy[1, place] += np.asarray(value, copy.dtype)
        return {**arrays, name: copy}

    return changed


def reverse(arrays: Arrays) -> Arrays:
    return {name: array[:, ::-1] for name, array in arrays.items()}


def swap_images(arrays: Arrays) -> Arrays:
    return {name: array[::-1] for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("other", "ties", "expected"),
    [
        (lambda arrays: arrays, 0.0, 0.0),
        (reverse, 0.0, 0.0),
        (swap_images, 0.0, np.inf),
        (change("scores", 2, 5e-4), 0.0, 5e-4),
        (change("scores", 2, 5e-3), 0.0, np.inf),
        (change("scores", 2, 5e-3), 0.1, 0.0),
        (change("labels", 0, 1), 0.0, np.inf),
        (change("mask_logits", 4, 0.04), 0.0, 0.01),
        (change("mask_logits", 4, 0.04), 0.1, 0.0),
        (change("mask_logits", 4, 4.0), 0.0, np.inf),
        (change("mask_logits", 4, np.nan), 0.0, np.inf),
    ],
)
def test_difference(other: Callable[[Arrays], Arrays], ties: float, expected: float) -> None:
    draws = np.random.default_rng(0)
    arrays: Arrays = {
        "scores": np.linspace(0.9, 0.1, 5, dtype=np.float32)[None].repeat(2, 0),
        "labels": np.zeros((2, 5), np.int64),
        "mask_logits": draws.normal(size=(2, 5, 4, 6), scale=3).astype(np.float32),
    }
    arrays["mask_logits"][1, 4] = 0
    found = largest_candidate_difference(arrays, other(arrays), ties=ties)
    assert found == pytest.approx(expected, abs=1e-4)
