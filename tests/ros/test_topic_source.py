"""Images of a running camera, for the calibration."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")

from mca_perception.errors import SourceError
from mca_perception.ros.topic_source import TopicSource
from tests.support.ros_camera import start_camera

pytestmark = pytest.mark.xdist_group("test_topic_source")


def test_images_are_taken_one_after_the_other() -> None:
    camera = start_camera("BEST_EFFORT", "/wrist/image_raw", "optical")
    try:
        source = TopicSource("/wrist/image_raw", count=3, interval_s=0.2, patience_s=60)
        frames = list(source)
    finally:
        camera.kill()
        camera.wait(10)
    assert [frame.name for frame in frames] == [f"/wrist/image_raw:{i}" for i in range(3)]
    assert {frame.frame_id for frame in frames} == {"optical"}
    stamps = [frame.stamp_ns or 0 for frame in frames]
    assert stamps == sorted(set(stamps))
    assert all(frame.pixels is not None and frame.pixels.shape == (96, 160, 3) for frame in frames)
    assert source.skipped == 0


def test_a_silent_topic_is_named() -> None:
    with pytest.raises(SourceError, match=r"/nobody sent no image for 0\.2 s"):
        list(TopicSource("/nobody", count=1, patience_s=0.2))
