"""Messages of one stamp find each other; every message that counts is handed over or dropped with a cause."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time

from mca_perception.ros.stamp_matching import INCOMPLETE, UNSTAMPED, StampMatcher

KINDS = ("objects", "mask", "image")


def message(seconds: int) -> Any:
    return SimpleNamespace(header=SimpleNamespace(stamp=Time(sec=seconds)))


class Harness:
    def __init__(self) -> None:
        self.matched: list[int] = []
        self.drops: list[str] = []
        self.matcher = StampMatcher(KINDS, on_match=self.match, on_drop=self.drops.append)

    def match(self, messages: dict[str, Any]) -> None:
        assert set(messages) == set(KINDS)
        (stamp,) = {entry.header.stamp.sec for entry in messages.values()}
        self.matched.append(stamp)


@pytest.mark.parametrize(
    ("arrivals", "matched", "drops"),
    [
        ([("image", 1), ("objects", 1), ("mask", 1)], [1], []),
        ([("objects", 1), ("image", 2), ("image", 1), ("mask", 1)], [1], []),
        ([("image", 1), ("image", 2), ("objects", 2), ("mask", 2)], [2], []),
        ([("objects", 0), ("image", 0), ("mask", 0)], [], [UNSTAMPED]),
        ([("objects", 1), ("objects", 1), ("mask", 1), ("image", 1)], [1], [INCOMPLETE]),
        ([("objects", s) for s in range(1, 19)], [], [INCOMPLETE] * 2),
        ([("image", s) for s in range(1, 40)] + [("objects", 39), ("mask", 39)], [39], []),
        ([("image", s) for s in range(1, 40)] + [("objects", 2), ("mask", 2)], [], []),
    ],
)
def test_what_is_matched_and_what_is_dropped(
    arrivals: list[tuple[str, int]], matched: list[int], drops: list[str]
) -> None:
    harness = Harness()
    for kind, stamp in arrivals:
        harness.matcher.receive(kind, message(stamp))
    assert harness.matched == matched
    assert harness.drops == drops


def test_every_counted_message_is_accounted_for_whatever_the_order() -> None:
    rng = random.Random(3)
    for _ in range(20):
        harness = Harness()
        arrivals = [(kind, rng.randint(0, 60)) for kind in KINDS for _ in range(80)]
        rng.shuffle(arrivals)
        for kind, stamp in arrivals:
            harness.matcher.receive(kind, message(stamp))
        harness.matcher.close()
        assert len(harness.matched) + len(harness.drops) == 80
