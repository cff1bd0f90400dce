"""`mca up`: the same processes as the launch file, started without the launch packages."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception.ros.bringup import parse_assignments
from mca_perception.ros.descriptions import ARMBENCH_ARGUMENTS, armbench
from mca_perception.ros.node_descriptions import NodeDescription
from mca_perception.ros.processes import ProcessGroup, node_command
from tests.support.processes import kill_with_children

pytestmark = pytest.mark.xdist_group("test_bringup")

Scene = Callable[..., NDArray[np.uint8]]
MCA = [sys.executable, "-m", "mca_perception.cli.main"]


@pytest.fixture
def images(tmp_path: Path, scene: Scene) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), scene("red", "green")[..., ::-1])
    return folder


@pytest.fixture
def video(tmp_path: Path, scene: Scene) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (160, 96))
    for _ in range(4):
        writer.write(scene("red", "green")[..., ::-1])
    writer.release()
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*MCA, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=90)
        finally:
            kill_with_children(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_arguments_are_listed_without_starting_anything() -> None:
    listing = run("up", "armbench", "--list-arguments")
    assert listing.returncode == 0
    for argument in ARMBENCH_ARGUMENTS:
        assert f"{argument.name}:={argument.default}" in listing.stdout
        assert argument.description in listing.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["armbench", "source:=a", "image:=b"], "exclude each other"),
        (["armbench", "sauce:=a"], "does not exist"),
        (["armbench", "source"], "name:=value"),
        (["kitchen"], "there are: armbench"),
    ],
)
def test_wrong_arguments_end_with_code_2(arguments: list[str], message: str) -> None:
    failed = run("up", *arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


def test_assignments_may_hold_anything_after_the_name() -> None:
    assert parse_assignments(["a:=b:=c", "d:="]) == {"a": "b:=c", "d": ""}


@pytest.mark.parametrize("source", ["images", "video"])
def test_source_perception_and_viewer_end_together(
    request: pytest.FixtureRequest, colour_bundle: Path, colour_gallery: Path, tmp_path: Path, source: str
) -> None:
    out = tmp_path / "out"
    arguments = {
        "source": request.getfixturevalue(source),
        "model": colour_bundle,
        "gallery": colour_gallery,
        "viewer": "true",
        "out": out,
    }
    done = run("up", "armbench", *(f"{name}:={value}" for name, value in arguments.items()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[perception]" in done.stdout
    assert "4 sent, 4 answered" in done.stdout
    assert "P-red" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"]["sent"] == summary["frames"]["received"] == summary["frames"]["overlays"] == 4
    assert summary["frames"]["lost"] == summary["frames"]["dropped"] == 0
    assert summary["objects"]["with_product"] == 8
    assert summary["latency_ms"]["p99"] >= summary["latency_ms"]["p50"] > 0
    assert len(list((out / "overlays").glob("*.jpg"))) == 4


def test_the_failing_process_gives_the_exit_code_and_its_last_lines(
    colour_bundle: Path, tmp_path: Path
) -> None:
    failed = run("up", "armbench", f"source:={tmp_path}", f"model:={colour_bundle}")
    assert failed.returncode == 2
    assert "process 'source' ended with code 2" in failed.stderr
    assert "holds no images" in failed.stderr


@pytest.fixture
def running(colour_bundle: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*MCA, "up", "armbench", f"model:={colour_bundle}"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    kill_with_children(process)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 3)])
def test_interrupting_stops_all_nodes(
    running: subprocess.Popen[str], client: Any, number: int, times: int
) -> None:
    client.perception(lambda facts: facts["state"] == "active", "the node", timeout=60)
    for _ in range(times):
        running.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0.1)
    assert running.wait(30) == 0
    client.wait(lambda: not client.node.count_publishers("objects"), 30, "the end of the node")


def test_when_nobody_reads_the_output_any_more_all_nodes_stop(colour_bundle: Path, client: Any) -> None:
    process = subprocess.Popen(
        [*MCA, "up", "armbench", f"model:={colour_bundle}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("[perception]")
        process.stdout.close()  # as `head -1` does
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        kill_with_children(process)
    client.wait(lambda: not client.node.count_publishers("objects"), 30, "the end of the node")


def test_output_on_a_full_disk_is_counted(colour_bundle: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        failed = subprocess.run(
            [*MCA, "up", "armbench", f"source:={tmp_path}", f"model:={colour_bundle}"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=90,
            check=False,
        )
    assert failed.returncode == 2
    assert "lines of the nodes were not written (No space left on device)" in failed.stderr
    assert "holds no images" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Exception" not in failed.stderr


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NodeDescription]:
    """Makes a node of a shell script."""
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    folder = tmp_path / "lib" / "scripts"
    folder.mkdir(parents=True)

    def make(name: str, script: str, **options: Any) -> NodeDescription:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o700)
        return NodeDescription(name, "/", name, package="scripts", **options)

    return make


def test_a_listener_that_fails_does_not_stop_the_nodes(program: Callable[..., NodeDescription]) -> None:
    def fail(name: str, line: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ProcessGroup(on_line=fail) as group:
        group.start([program("loud", "seq 30000")])  # more than a pipe holds
        assert group.wait(30) is None
        assert group.nodes[0].process.returncode == 0
    assert group.describe_losses() == "30000 lines of the nodes were not written (No space left on device)"


def test_a_listener_that_is_gone_ends_the_wait(program: Callable[..., NodeDescription]) -> None:
    def fail(name: str, line: str) -> None:
        raise BrokenPipeError

    with ProcessGroup(on_line=fail) as group:
        group.start([program("loud", "seq 30000; exec sleep 60")])
        with pytest.raises(BrokenPipeError):
            group.wait(30)
    assert group.nodes[0].process.returncode in (
        -signal.SIGINT,
        -signal.SIGTERM,
    )  # the first may be ignored here


def test_the_others_go_on_without_an_optional_node(program: Callable[..., NodeDescription]) -> None:
    lines = []
    with ProcessGroup(on_line=lambda name, line: lines.append(f"{name} {line}")) as group:
        group.start([program("onlooker", "exit 3", optional=True), program("worker", "sleep 0.5; exit 4")])
        ended = group.wait(30)
        assert ended is not None
        assert ended.name == "worker"
    assert lines == ["onlooker ended with code 3; the other nodes go on"]


def test_commands_carry_namespace_name_remaps_and_parameters(tmp_path: Path) -> None:
    (node,) = armbench({"image": "/cam/raw", "namespace": "left"})
    command = node_command(node, tmp_path / "p.yaml")
    assert command[:3] == [sys.executable, "-m", "mca_perception.ros.perception_node"]
    assert "__ns:=/left" in command
    assert "image:=/cam/raw" in command
    assert "/left/perception" in (tmp_path / "p.yaml").read_text()


def test_a_group_reports_who_ended_and_stops_the_rest() -> None:
    with ProcessGroup() as group:
        group.start(armbench({"source": "/does/not/exist", "model": "/nowhere"}))
        ended = group.wait(60)
        assert ended is not None
        assert ended.name == "source"
        assert "does not exist" in ended.describe_failure()
    assert all(node.process.poll() is not None for node in group.nodes)
