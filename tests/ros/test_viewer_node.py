"""The viewer as a process; its usual work is tested with `mca up` and `mca demo`."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

import rclpy
from mca_perception_msgs.msg import PerceivedObjects
from rclpy.parameter import Parameter
from rich.console import Console
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from mca_perception.ros import qos, viewer_node
from mca_perception.ros.conversions import time_message
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


def test_a_folder_that_cannot_be_made_is_named(start_node: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    viewer = start_node("viewer_node", out=str(tmp_path / "out"))
    assert viewer.wait() == 2
    assert f"folder {tmp_path / 'out' / 'overlays'} cannot be made" in viewer.output()
    assert "Traceback" not in viewer.output()


def test_a_full_disk_costs_pictures_but_not_the_viewer(client: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    namespace = ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=64k none {out} && ! head -c 70000 /dev/zero > {out}/rest"
    if subprocess.run([*namespace, "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    command = f"({mount}) 2>/dev/null; exec {sys.executable} -m mca_perception.ros.viewer_node --ros-args"
    log = tmp_path / "log"
    with log.open("w") as stream:
        viewer = subprocess.Popen(
            [*namespace, "sh", "-c", f"{command} -r __ns:=/full -p out:={out}"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ROS_LOG_DIR": str(tmp_path)},
        )
    try:
        objects = client.node.create_publisher(PerceivedObjects, "/full/objects", qos.RESULTS)
        client.wait(objects.get_subscription_count, 60, "the viewer")
        overlays = client.publisher(CompressedImage, "/full/overlay/compressed")

        def show(number: int, size: int) -> None:
            header = Header(stamp=time_message(number))
            objects.publish(PerceivedObjects(header=header))
            client.wait(lambda: f"frame   {number}" in log.read_text(), what="the frame")
            overlays.publish(CompressedImage(header=header, data=b"x" * size))

        show(1, 5000)
        client.wait(lambda: "No space left on device" in log.read_text(), what="the warning")
        seen = Path(f"/proc/{viewer.pid}/root/{out}")  # as the viewer sees it
        (seen / "rest").unlink()
        show(2, 5000)
        client.wait(lambda: list((seen / "overlays").glob("0002*.jpg")), what="the second overlay")
        summary = os.open(seen, os.O_DIRECTORY)  # stays when the viewer has gone
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(20) == 0, log.read_text()
        with open("summary.json", opener=lambda path, flags: os.open(path, flags, dir_fd=summary)) as file:
            frames = json.load(file)["frames"]
        os.close(summary)
        assert (frames["received"], frames["overlays"], frames["overlays_unwritten"]) == (2, 2, 1)
    finally:
        viewer.kill()
        viewer.wait(10)


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


def test_with_a_limit_of_0_the_viewer_waits_for_ever(context: rclpy.Context) -> None:
    for limit, over in ((60.0, True), (0.0, False)):
        idle = Parameter("idle_timeout_s", value=limit)
        with ResultView(Console(file=io.StringIO())) as view:
            viewer = ViewerNode(view, context=context, parameter_overrides=[idle])
        viewer.last_message = time.monotonic() - 1e6
        assert viewer.is_over() is over
        viewer.destroy_node()


def test_a_summary_that_cannot_be_written_is_said_and_counts_as_a_failure(
    context: rclpy.Context, tmp_path: Path
) -> None:
    out = Parameter("out", value=str(tmp_path / "out"))
    with ResultView(Console(file=io.StringIO())) as view:
        viewer = ViewerNode(view, context=context, parameter_overrides=[out])
    (tmp_path / "out" / "summary.json").mkdir()
    assert not viewer.write_summary()
    viewer.destroy_node()
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == []


def test_overlays_get_their_names_early_or_late_and_names_without_overlay_are_forgotten(
    context: rclpy.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_node, "_MAX_NAMES", 3)
    out = Parameter("out", value=str(tmp_path))
    with ResultView(Console(file=io.StringIO())) as view:
        viewer = ViewerNode(view, context=context, parameter_overrides=[out])
        headers = [Header(stamp=time_message(number)) for number in range(1, 6)]
        for header in headers:
            viewer._on_objects(PerceivedObjects(header=header, container_id="tote"))
        for header in (headers[1], headers[4]):
            viewer._on_overlay(CompressedImage(header=header, data=b"x"))
        early = Header(stamp=time_message(6))
        viewer._on_overlay(CompressedImage(header=early, data=b"x"))
        viewer._on_objects(PerceivedObjects(header=early, container_id="tote"))
    viewer.destroy_node()
    names = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert names == ["0005_tote.jpg", "0006_tote.jpg", "frame_2.jpg"]


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
