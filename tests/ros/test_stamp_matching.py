"""Messages of one stamp find each other; every message that counts is handed over or dropped with a cause."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mca_perception.ros.frame_policy import DEACTIVATED
from mca_perception.ros.stamp_matching import INCOMPLETE, UNSTAMPED, StampMatcher

KINDS = {"objects": 3.0, "mask": 30.0, "image": 30.0}
MIB = 1 << 20


class Harness:
    """Messages that are their own stamps, as many bytes large as is said, on a clock that is set."""

    def __init__(self, max_bytes: int = 1000 * MIB) -> None:
        self.now = 0.0
        self.matched: list[int] = []
        self.drops: list[str] = []
        self.reasons: list[str] = []
        self.matcher = StampMatcher(
            KINDS, on_match=self.match, on_drop=self.drop, max_bytes=max_bytes, clock=lambda: self.now
        )

    def receive(self, kind: str, stamp: int, size: int = MIB) -> None:
        self.matcher.receive(kind, stamp, stamp, size)

    def match(self, items: dict[str, Any]) -> None:
        assert set(items) == set(KINDS)
        self.matched += set(items.values())

    def drop(self, cause: str, reason: str) -> None:
        self.drops.append(cause)
        self.reasons.append(reason)


@pytest.mark.parametrize(
    ("arrivals", "matched", "drops"),
    [
        ([("image", 1), ("objects", 1), ("mask", 1)], [1], []),
        ([("objects", 1), ("image", 2), ("image", 1), ("mask", 1)], [1], []),
        ([("image", 1), ("image", 2), ("objects", 2), ("mask", 2)], [2], []),
        ([("objects", 0), ("image", 0), ("mask", 0)], [], [UNSTAMPED]),
        ([("objects", 1), ("objects", 1), ("mask", 1), ("image", 1)], [1], [INCOMPLETE]),
        ([("image", s) for s in range(1, 40)] + [("objects", 39), ("mask", 39)], [39], []),
        ([("image", s) for s in range(1, 800)] + [("objects", 2), ("mask", 2)], [2], []),
    ],
)
def test_what_is_matched_and_what_is_dropped(
    arrivals: list[tuple[str, int]], matched: list[int], drops: list[str]
) -> None:
    harness = Harness()
    for kind, stamp in arrivals:
        harness.receive(kind, stamp)
    assert harness.matched == matched
    assert harness.drops == drops


def test_every_counted_message_is_accounted_for_whatever_the_order() -> None:
    rng = random.Random(3)
    for _ in range(20):
        harness = Harness()
        arrivals = [(kind, rng.randint(0, 60)) for kind in KINDS for _ in range(80)]
        rng.shuffle(arrivals)
        for kind, stamp in arrivals:
            harness.receive(kind, stamp)
            harness.now += rng.random()
        harness.matcher.close()
        assert len(harness.matched) + len(harness.drops) == 80


def test_segmentation_that_takes_seconds_finds_the_images_of_a_fast_camera_still_there() -> None:
    harness = Harness()
    for frame in range(1, 60 * 20):  # 20 s at 60 Hz, segmented one a second, 4 s later
        harness.now = frame / 60
        harness.receive("image", frame, 200_000)
        if frame % 60 == 0 and frame > 240:
            harness.receive("mask", frame - 240)
            harness.receive("objects", frame - 240, 0)
    assert len(harness.matched) == 15
    assert not harness.drops


def test_images_wait_within_a_limit_and_objects_that_come_too_late_tell_why() -> None:
    harness = Harness(max_bytes=100 * MIB)
    for frame in range(1, 51):
        harness.receive("image", frame, 5 * MIB)
    harness.receive("mask", 30)
    harness.receive("objects", 30)
    assert not harness.matched
    harness.now = 4.0
    harness.matcher.expire()
    assert harness.drops == [INCOMPLETE]
    assert "their image did not come, or went before them" in harness.reasons[0]
    assert "no room within 100 MiB" in harness.reasons[0]
    harness.receive("mask", 45)
    harness.receive("objects", 45)
    assert harness.matched == [45]


def test_what_a_later_message_has_overtaken_makes_room_but_for_the_last_ones() -> None:
    harness = Harness()
    for frame in range(1, 101):
        harness.receive("image", frame)
    for frame in (90, 73, 74):  # whoever segments may change the order, a little
        harness.receive("mask", frame)
        harness.receive("objects", frame)
    assert harness.matched == [90, 74]
    harness.matcher.close()
    assert harness.drops == [DEACTIVATED]


def test_objects_do_not_wait_for_ever() -> None:
    harness = Harness()
    harness.receive("objects", 1)
    harness.receive("mask", 1)
    harness.now = 2.9
    harness.matcher.expire()
    assert not harness.drops
    harness.now = 3.1
    harness.matcher.expire()
    assert (harness.drops, harness.reasons) == ([INCOMPLETE], ["their image did not come"])
