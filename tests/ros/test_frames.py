import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mca_perception.deploy.sessions.turns import Turns
from mca_perception.ros.depth_input import DepthInput
from mca_perception.ros.engine import Engine, EngineSlot
from mca_perception.ros.frame_policy import FrameQueue
from mca_perception.ros.frames import Container, FrameWorkers, Intake, PendingFrame
from mca_perception.ros.images import to_image_message
from mca_perception.ros.parameters import load_schema
from mca_perception.ros.processing import FrameProcessor, Perceived
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


@pytest.mark.parametrize("parallel", [1, 3])
def test_stop_waits_for_the_frames_in_progress_and_discards_the_rest(parallel: int) -> None:
    dropped: list[str] = []
    queue: FrameQueue[int] = FrameQueue("every_frame", depth=10, on_drop=dropped.append)
    begun, may_end = threading.Semaphore(0), threading.Event()
    delivered: list[tuple[int, bool]] = []

    def work(frame: int) -> int:
        begun.release()
        may_end.wait(10)
        return 10 * frame

    for frame in range(8):
        queue.put(frame)
    workers = FrameWorkers(
        queue, work, lambda frame, found: delivered.append((found, queue.closed)), parallel=parallel
    )
    for _ in range(parallel):
        assert begun.acquire(timeout=10)
    stopper = threading.Thread(target=workers.stop)
    stopper.start()
    while not queue.closed:
        pass
    may_end.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert delivered == [(10 * frame, True) for frame in range(parallel)]
    assert dropped == ["deactivated"] * (8 - parallel)


def test_results_keep_the_order_of_frames_that_overtake_each_other() -> None:
    queue: FrameQueue[int] = FrameQueue("every_frame", depth=100, on_drop=lambda cause: None)
    finished, delivered = [], []
    odd_ones_are_done = threading.Semaphore(0)
    all_delivered = threading.Event()

    def work(frame: int) -> int:
        if frame % 2:
            finished.append(frame)
            odd_ones_are_done.release()
        else:  # slow: until the next one is done
            assert odd_ones_are_done.acquire(timeout=10)
            finished.append(frame)
        return -frame

    def deliver(frame: int, found: int) -> None:
        assert found == -frame
        delivered.append(frame)
        if len(delivered) == 20:
            all_delivered.set()

    workers = FrameWorkers(queue, work, deliver, parallel=2)
    for frame in range(20):
        queue.put(frame)
    assert all_delivered.wait(20)
    workers.stop()
    assert delivered == list(range(20))
    assert finished != delivered
    assert sorted(finished) == delivered


def test_the_freshest_frame_is_taken_when_the_turn_comes_and_the_wait_counts(colour_bundle: Path) -> None:
    statistics, delivered = Statistics(), []
    turns, all_delivered = Turns(), threading.Event()
    queue: FrameQueue[PendingFrame] = FrameQueue("freshest", on_drop=statistics.count_drop)
    intake = Intake(queue, statistics, container=Container, now_ns=lambda: 0)
    processor = FrameProcessor(
        EngineSlot(Engine(colour_bundle)),
        None,  # type: ignore[arg-type]  # nothing is published here
        statistics,
        {name: spec.default for name, spec in load_schema("perception").items()},  # type: ignore[arg-type]
        DepthInput(),
        on_drop=lambda cause, reason: None,
        on_left_out=lambda output, reason: None,
    )

    def deliver(frame: PendingFrame, found: Perceived | None) -> None:
        assert found is not None
        delivered.append((frame.message.header.stamp.sec, found.queue_ms))
        all_delivered.set()

    with turns:  # another camera's
        workers = FrameWorkers(queue, processor.perceive, deliver, parallel=2, turns=turns)
        for second in (1, 2, 3):
            header = Header(stamp=Time(sec=second))
            intake.receive(to_image_message(np.full((96, 160, 3), 127, np.uint8), "rgb8", header))
            while not turns._waiting:  # a worker has asked
                pass
        time.sleep(0.05)  # the other camera's frame is worked on
    assert all_delivered.wait(20)
    workers.stop()
    ((second, queue_ms),) = delivered
    assert second == 3
    assert queue_ms >= 50
    assert statistics.snapshot().drops == {"superseded": 2}
    with turns:  # given back
        pass
