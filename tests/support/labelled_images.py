"""A folder of images with a class each: plain colours with a little noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.bundles import PALETTE
from tests.support.datasets import write_image


def write_colour_classes(root: Path, per_class: int = 6, *, classes: int = 6, seed: int = 0) -> None:
    """``root/COLOUR/N.png``, 40 pixels wide; shades of a class differ in brightness."""
    rng = np.random.default_rng(seed)
    for name, colour in list(PALETTE.items())[:classes]:
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            shade = np.array(colour) * rng.uniform(0.7, 1.0) + rng.normal(0, 8, (40, 40, 3))
            write_image(folder / f"{number}.png", shade.clip(0, 255).astype(np.uint8))
