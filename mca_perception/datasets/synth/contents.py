"""What goes into a tote: how many objects, and which products."""

from __future__ import annotations

import numpy as np

from mca_perception.datasets.synth.catalogue import Catalogue, Product
from mca_perception.errors import DatasetError

MIXED, ZOOMED_OUT, SAME_OBJECT = "mix-object-tote", "zoomed-out-tote-transfer-set", "same-object-transfer-set"
SUBSETS = (MIXED, ZOOMED_OUT, SAME_OBJECT)
MAX_OBJECTS = 60
# Above the first number of objects a tote begins to count as crowded; at the second it is as crowded as it gets.
_CROWD_BEGINS, _CROWD_FULL = 14, 36
_CROWD_CANDIDATES = 3
_LONE_COPY_SHARE, _NEIGHBOUR_SHARE = 0.1, 0.2
# Share of the scenes, fewest and most objects. The long tail of the mixed subset is there to train and measure
# crowds; the means (labels per scene) follow ARMBench's 10.5, 7.5 and 3.8.
_COUNTS: dict[str, tuple[tuple[float, int, int], ...]] = {
    MIXED: ((0.12, 2, 4), (0.79, 5, 14), (0.06, 15, 28), (0.03, 31, 40)),
    ZOOMED_OUT: ((0.08, 2, 4), (0.84, 5, 10), (0.08, 11, 24)),
    SAME_OBJECT: ((0.94, 2, 8), (0.06, 9, 16)),
}
ObjectRange = tuple[int, int]


def parse_objects(text: str) -> ObjectRange:
    """``"26-40"`` or ``"12"`` to the fewest and the most objects of a scene.

    Raises:
        DatasetError: not such a range, or outside 1 to 60.
    """
    low, dash, high = text.partition("-")
    try:
        found = int(low), int(high if dash else low)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1] <= MAX_OBJECTS:
        raise DatasetError(f"--objects {text!r}: give MIN-MAX such as 26-40, within 1 to {MAX_OBJECTS}")
    return found


def draw_count(rng: np.random.Generator, subset: str, objects: ObjectRange | None = None) -> int:
    """Number of objects of a scene: even over ``objects``, else by the subset's own long-tailed distribution."""
    if objects is None:
        groups = _COUNTS[subset]
        objects = groups[int(rng.choice(len(groups), p=[share for share, _, _ in groups]))][1:]
    return int(rng.integers(objects[0], objects[1] + 1))


def crowding(count: int) -> float:
    """0 for a tote of up to 14 objects to 1 for one of 36 and more: how small its products and big the tote."""
    return float(np.clip((count - _CROWD_BEGINS) / (_CROWD_FULL - _CROWD_BEGINS), 0, 1))


def choose_products(
    catalogue: Catalogue, rng: np.random.Generator, subset: str, objects: ObjectRange | None = None
) -> list[Product]:
    """Products of one scene in the order in which they are dropped.

    Copies of one product in the same-object subset; elsewhere a mix in which a tenth are copies of another one and
    a fifth catalogue neighbours, so often line-mates. Crowded totes hold the smaller products.
    """
    count = draw_count(rng, subset, objects)
    if subset == SAME_OBJECT:
        return [catalogue.product(catalogue.draw(rng, 1)[0])] * count
    candidates = 1 + round((_CROWD_CANDIDATES - 1) * crowding(count))
    chosen: list[int] = []
    while len(chosen) < count:
        draw = rng.random()
        if chosen and draw < _LONE_COPY_SHARE:
            chosen.append(chosen[int(rng.integers(len(chosen)))])
        elif chosen and draw < _LONE_COPY_SHARE + _NEIGHBOUR_SHARE:
            chosen.append(min(chosen[-1] + 1, len(catalogue) - 1))
        else:
            drawn = catalogue.draw(rng, candidates)
            chosen.append(min(drawn, key=lambda index: _footprint(catalogue.product(index))))
    return [catalogue.product(int(index)) for index in rng.permutation(chosen)]


def _footprint(product: Product) -> float:
    """Area in square centimetres of the largest side."""
    _, middle, longest = sorted(product.size)
    return middle * longest
