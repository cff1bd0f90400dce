"""Tracking against drawn truth: objects that move, vanish, return, cross and look alike."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("scipy")

from mca_perception.tracking import ByteTracker
from mca_perception.tracking.kalman import BoxFilter


def boxes_at(*centres: tuple[float, float], side: float = 40.0) -> NDArray[np.float32]:
    return np.array(
        [[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for x, y in centres], np.float32
    )


def track(tracker: ByteTracker, boxes: NDArray[np.float32], scores: float | list[float] = 0.9) -> list[int]:
    values = np.broadcast_to(np.asarray(scores, np.float32), len(boxes)).copy()
    return tracker.update(boxes.reshape(-1, 4), values, np.zeros(len(boxes), np.int64)).tolist()


def test_ids_stay_while_objects_move_and_their_order_changes() -> None:
    tracker = ByteTracker()
    first = track(tracker, boxes_at((50, 50), (300, 60), (200, 220)))
    assert sorted(first) == [1, 2, 3]
    for step in range(1, 25):
        centres = [(50 + 6 * step, 50.0), (300 - 5 * step, 60 + 3 * step), (200.0, 220 - 4 * step)]
        order = np.random.default_rng(step).permutation(3)
        found = track(tracker, boxes_at(*[centres[i] for i in order]))
        assert found == [first[i] for i in order]


def test_objects_of_constant_speed_keep_their_ids_when_they_pass_each_other() -> None:
    tracker = ByteTracker()
    identities = [track(tracker, boxes_at((100 + 8.0 * t, 100.0), (400 - 8.0 * t, 118.0))) for t in range(38)]
    assert all(ids == identities[0] for ids in identities)


@pytest.mark.parametrize(("frames", "kept"), [(10, True), (30, True), (31, False)])
def test_an_object_that_is_hidden_for_a_while_gets_its_id_back(frames: int, kept: bool) -> None:
    tracker = ByteTracker(keep_lost=30)
    (before,) = track(tracker, boxes_at((100, 100)))
    for _ in range(frames):
        assert track(tracker, np.zeros((0, 4), np.float32)) == []
    (after,) = track(tracker, boxes_at((104, 100)))
    assert (after == before) is kept


def test_a_weak_box_continues_a_track_but_does_not_take_one_from_a_strong_box() -> None:
    tracker = ByteTracker(confident=0.6)
    (first,) = track(tracker, boxes_at((100, 100)))
    assert track(tracker, boxes_at((101, 100)), 0.3) == [first]
    weak, strong = track(tracker, boxes_at((102, 100), (110, 100)), [0.3, 0.9])
    assert strong == first
    assert weak not in (first, 0)


def test_classes_do_not_mix() -> None:
    tracker = ByteTracker()
    boxes, scores = boxes_at((100, 100)), np.array([0.9], np.float32)
    first = tracker.update(boxes, scores, np.array([0]))
    assert tracker.update(boxes, scores, np.array([1])) != first


def test_a_reset_starts_new_ids() -> None:
    tracker = ByteTracker()
    (first,) = track(tracker, boxes_at((100, 100)))
    tracker.reset()
    (second,) = track(tracker, boxes_at((100, 100)))
    assert second > first


def test_the_filter_foresees_a_steady_motion() -> None:
    motion = BoxFilter(boxes_at((0, 0))[0])
    for step in range(1, 20):
        motion.predict()
        motion.update(boxes_at((5.0 * step, -3.0 * step))[0])
    motion.predict()
    assert motion.box == pytest.approx(boxes_at((100, -60))[0], abs=1.0)


def test_ids_are_unique_in_every_frame_of_random_scenes() -> None:
    rng = np.random.default_rng(3)
    tracker = ByteTracker()
    for _ in range(40):
        count = int(rng.integers(0, 30))
        corners = rng.uniform(0, 500, (count, 2)).astype(np.float32)
        boxes = np.concatenate([corners, corners + rng.uniform(1, 120, (count, 2))], axis=1).astype(
            np.float32
        )
        ids = tracker.update(boxes, rng.random(count).astype(np.float32), rng.integers(0, 2, count))
        assert len(set(ids.tolist())) == count
        assert (ids > 0).all()
