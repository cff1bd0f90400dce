import threading
from collections import Counter

import pytest

pytest.importorskip("rclpy")

from mca_perception.ros.frame_policy import FrameQueue


@pytest.mark.parametrize(
    ("policy", "depth", "expected", "drops"),
    [
        ("freshest", 1, [4], {"superseded": 4}),
        ("freshest", 10, [4], {"superseded": 4}),
        ("every_frame", 3, [0, 1, 2], {"queue_full": 2}),
        ("every_frame", 5, [0, 1, 2, 3, 4], {}),
    ],
)
def test_which_frames_remain_and_which_are_counted(
    policy: str, depth: int, expected: list[int], drops: dict[str, int]
) -> None:
    counted: Counter[str] = Counter()
    queue: FrameQueue[int] = FrameQueue(policy, depth=depth, on_drop=lambda cause: counted.update([cause]))
    for frame in range(5):
        queue.put(frame)
    assert [queue.get(timeout=0) for _ in expected] == expected
    assert queue.get(timeout=0) is None
    assert counted == drops


@pytest.mark.parametrize(("policy", "depth"), [("newest", 1), ("every_frame", 0)])
def test_wrong_settings_are_refused(policy: str, depth: int) -> None:
    with pytest.raises(ValueError, match=r"frame policy|queue depth"):
        FrameQueue(policy, depth=depth, on_drop=lambda cause: None)


def test_close_wakes_the_worker_and_discards_what_waits() -> None:
    queue: FrameQueue[str] = FrameQueue("every_frame", depth=2, on_drop=lambda cause: None)
    results: list[str | None] = []
    worker = threading.Thread(target=lambda: results.append(queue.get()))
    worker.start()
    queue.close()
    worker.join(timeout=5)
    assert not worker.is_alive()
    queue.put("too late")
    assert results == [None]
    assert queue.get(timeout=0) is None
    assert queue.closed


def test_a_frame_put_later_reaches_a_waiting_worker() -> None:
    queue: FrameQueue[str] = FrameQueue("freshest", on_drop=lambda cause: None)
    results: list[str | None] = []
    worker = threading.Thread(target=lambda: results.append(queue.get(timeout=10)))
    worker.start()
    queue.put("frame")
    worker.join(timeout=5)
    assert results == ["frame"]


def test_every_frame_is_taken_or_dropped_for_a_cause() -> None:
    dropped: list[str] = []
    queue: FrameQueue[int] = FrameQueue("every_frame", depth=3, on_drop=dropped.append)
    for frame in range(5):
        queue.put(frame)
    assert queue.get(timeout=0) == 0
    queue.close()
    queue.put(6)
    assert dropped == ["queue_full", "queue_full", "deactivated", "deactivated", "deactivated"]
