import threading

import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.ros.frame_policy import FrameQueue
from mca_perception.ros.frames import Container, FrameWorker, Intake, PendingFrame
from mca_perception.ros.statistics import Statistics


def message(kind: type, seconds: int) -> Image | CompressedImage:
    return kind(header=Header(stamp=Time(sec=seconds)))


@pytest.mark.parametrize(
    ("arrivals", "kept"),
    [
        ([(Image, 1), (CompressedImage, 1)], 1),
        ([(CompressedImage, 1), (Image, 1)], 1),
        ([(Image, 1), (Image, 2), (CompressedImage, 1), (CompressedImage, 2)], 2),
        ([(Image, 1), (Image, 1)], 2),
        ([(Image, 0), (CompressedImage, 0)], 2),
        ([(Image, 1), (CompressedImage, 2)], 2),
    ],
)
def test_a_stamp_counts_once_over_both_inputs(arrivals: list[tuple[type, int]], kept: int) -> None:
    statistics = Statistics()
    queue: FrameQueue[PendingFrame] = FrameQueue("every_frame", depth=10, on_drop=statistics.count_drop)
    intake = Intake(queue, statistics, container=Container, now_ns=lambda: 0)
    for kind, seconds in arrivals:
        intake.receive(message(kind, seconds))
    snapshot = statistics.snapshot()
    assert len(queue) == kept
    assert snapshot.received == len(arrivals)
    assert snapshot.drops.get("duplicate", 0) == len(arrivals) - kept


def test_frames_remember_the_container_at_their_arrival() -> None:
    statistics = Statistics()
    queue: FrameQueue[PendingFrame] = FrameQueue("every_frame", depth=10, on_drop=statistics.count_drop)
    containers = iter([Container("a"), Container("b")])
    intake = Intake(queue, statistics, container=lambda: next(containers), now_ns=lambda: 7)
    intake.receive(message(Image, 1))
    intake.receive(message(Image, 2))
    frames = [queue.get(timeout=0), queue.get(timeout=0)]
    assert [frame.container.container_id for frame in frames if frame] == ["a", "b"]
    assert all(frame.received_ns == 7 for frame in frames if frame)


def test_stop_waits_for_the_frame_in_progress_and_discards_the_rest() -> None:
    queue: FrameQueue[str] = FrameQueue("every_frame", depth=10, on_drop=lambda cause: None)
    begun, may_end = threading.Event(), threading.Event()
    handled: list[str] = []

    def handle(frame: str) -> None:
        begun.set()
        may_end.wait(10)
        handled.append(frame)

    for frame in ("first", "second"):
        queue.put(frame)
    worker = FrameWorker(queue, handle)  # type: ignore[arg-type]
    assert begun.wait(10)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    may_end.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert handled == ["first"]
