"""The viewer as a process; its usual work is tested with `mca up` and `mca demo`."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.parameter import Parameter
from rich.console import Console

from mca_perception.ros.session_log import FrameRecord, ObjectRow
from mca_perception.ros.tables import ResultView
from mca_perception.ros.viewer_node import ViewerNode

pytestmark = pytest.mark.xdist_group("test_viewer_node")


def test_without_objects_it_gives_up_and_still_writes_a_summary(
    start_node: Callable[..., Any], tmp_path: Path
) -> None:
    viewer = start_node("viewer_node", out=str(tmp_path / "out"), idle_timeout_s=1.0)
    assert viewer.wait() == 1
    assert "no objects were published" in viewer.output()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["frames"]["received"] == 0


@pytest.fixture
def context(ros_domain: int) -> Iterator[rclpy.Context]:
    made = rclpy.Context()
    rclpy.init(context=made, args=[])
    yield made
    rclpy.shutdown(context=made)


def test_who_finds_its_reader_of_the_objects_has_found_the_others(
    context: rclpy.Context, tmp_path: Path
) -> None:
    out = Parameter("out", value=str(tmp_path))
    with ResultView(Console(file=io.StringIO())) as view:
        viewer = ViewerNode(view, context=context, parameter_overrides=[out])
    topics = [subscription.topic_name for subscription in viewer.subscriptions]
    viewer.destroy_node()
    assert {"/diagnostics", "/overlay/compressed"} < set(topics)
    assert topics[-1] == "/objects"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_names_product_score_box_and_latency(terminal: bool) -> None:
    rows = (
        ObjectRow(3, "Object", 0.91, "B00X", 0.77, (1.0, 2.0, 30.0, 40.0)),
        ObjectRow(4, "Object", 0.5, "", 0.0, (0.0, 0.0, 1.0, 1.0)),
    )
    frame = FrameRecord(1, 0.0, 42.0, "tote-1", "nano@1", (96, 160), rows, {"processing": 12.0})
    text = io.StringIO()
    with ResultView(Console(file=text, force_terminal=terminal, width=100)) as view:
        view.show(1, frame)
    shown = text.getvalue()
    for part in (
        "tote-1",
        "B00X",
        "0.77",
        "0.91",
        "30",
        "40",
        "latency    42 ms",
        "processing 12 ms",
        "Object",
    ):
        assert part in shown
