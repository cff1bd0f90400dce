"""Posts that the benchmarks of the crisis service send, the same on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

SEED = 20_000
IN_FLIGHT = (1, 16, 64)
# fmt: off
WORDS = (
    "flood", "water", "rising", "bridge", "collapsed", "road", "closed", "shelter", "open",
    "volunteers", "needed", "donate", "blankets", "power", "out", "hospital", "rescue", "boat",
    "family", "trapped", "roof", "storm", "surge", "landfall", "coffee", "football", "concert",
    "weekend", "photo", "#harvey", "#prayfor", "@user", "inundación", "ayuda", "urgente", "سیلاب",
    "مدد", "زلزلہ", "地震", "救助", "😭", "🔥",
)
# fmt: on


def texts(count: int) -> list[str]:
    """Distinct texts of 5 to 40 words in several scripts."""
    generator = np.random.default_rng(SEED)
    return [f"{' '.join(generator.choice(WORDS, generator.integers(5, 41)))} {i}" for i in range(count)]


def hostile_posts() -> Iterator[Any]:
    """Messages that nobody sends in good faith, in turn and without end; needs the message package."""
    from mca_perception_msgs.msg import CrisisPost
    from sensor_msgs.msg import CompressedImage

    broken = CompressedImage(format="jpeg", data=b"no image")
    huge = CompressedImage(
        format="png", data=b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + b"\x00\x0f\xff\xff" * 2
    )
    posts = (
        CrisisPost(),
        CrisisPost(text=" \n\t\u200b"),
        CrisisPost(text="water " * 170_000),
        CrisisPost(text="\N{FIRE}" * 10_000),
        CrisisPost(text="\u202emixed سیلاب help 救助\u202c \x07"),
        CrisisPost(text="boat needed", images=[broken]),
        CrisisPost(text="boat needed", images=[huge]),
        CrisisPost(text="boat needed", images=[broken] * 50),
        CrisisPost(images=[broken]),
        CrisisPost(text="flood", post_id="p" * 100_000, event_id="e" * 100_000),
    )
    return itertools.cycle(posts)
