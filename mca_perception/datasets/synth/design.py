"""A brand's design: words, palette, and which layout, pattern, emblem and picture it uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.textures import Color
from mca_perception.datasets.synth.words import brand_word, product_words

KRAFT: Color = (186, 148, 104)


@dataclass(frozen=True)
class Design:
    """What is printed on a product. Line-mates share everything but words, colours and ``variant_seed``."""

    brand: str
    title: str
    adjective: str
    size_text: str
    paper: Color
    main: Color
    second: Color
    accent: Color
    ink: Color
    layout: int
    pattern: int
    logo: int
    picture: int
    font: int
    weight: int
    art_seed: int
    variant_seed: int


def make_design(line_rng: np.random.Generator, variant_rng: np.random.Generator, kind: str) -> Design:
    """Draw a design; equal states of ``line_rng`` give line-mates (same brand and layout)."""
    brand = brand_word(line_rng)
    title, adjective, size_text = product_words(variant_rng, kind)
    hue = line_rng.random() + (
        variant_rng.choice([0.0, 0.12, 0.3, 0.45, 0.6, 0.8]) if variant_rng.random() < 0.8 else 0.0
    )
    main = _main_color(line_rng, hue)
    second = tx.hsv(
        hue + float(line_rng.choice([0.06, 0.33, 0.5, 0.66])),
        line_rng.uniform(0.3, 1),
        line_rng.uniform(0.3, 1),
    )
    accent = tx.hsv(
        hue + float(variant_rng.choice([0.1, 0.4, 0.55, 0.9])),
        variant_rng.uniform(0.5, 1),
        variant_rng.uniform(0.55, 1),
    )
    paper = tx.hsv(hue, line_rng.uniform(0, 0.12), line_rng.uniform(0.86, 0.98))
    layout = int(line_rng.choice(10, p=[0.14, 0.1, 0.12, 0.14, 0.09, 0.07, 0.1, 0.1, 0.09, 0.05]))
    return Design(
        brand,
        title,
        adjective,
        size_text,
        paper,
        main,
        second,
        accent,
        tx.readable_on(main, line_rng),
        layout,
        int(line_rng.integers(9)),
        int(line_rng.integers(8)),
        int(line_rng.integers(6)),
        int(line_rng.integers(8)),
        int(line_rng.choice([300, 500, 700, 900])),
        int(line_rng.integers(2**31)),
        int(variant_rng.integers(2**31)),
    )


def _main_color(rng: np.random.Generator, hue: float) -> Color:
    draw = rng.random()
    if draw < 0.13:
        return tx.hsv(hue, rng.uniform(0, 0.06), rng.uniform(0.88, 0.98))
    if draw < 0.24:
        return tx.hsv(hue, rng.uniform(0, 0.3), rng.uniform(0.07, 0.22))
    if draw < 0.32:
        return tx.hsv(hue, rng.uniform(0, 0.1), rng.uniform(0.35, 0.7))
    if draw < 0.5:
        return tx.hsv(hue, rng.uniform(0.2, 0.45), rng.uniform(0.75, 0.95))
    return tx.hsv(hue, rng.uniform(0.6, 1), rng.uniform(0.35, 0.95))
