"""The manager: several lifecycle nodes come up in order, come back after a crash, and a failure is said clearly."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState

pytestmark = pytest.mark.xdist_group("test_manager_node")

CAMERAS = ("/left", "/right")
NAMES = [f"{camera}/perception" for camera in CAMERAS]


def state_of(client: Any, name: str) -> str:
    return str(client.call(GetState, f"{name}/get_state").current_state.label)


def is_active(client: Any, camera: str) -> None:
    client.perception(lambda facts: facts["state"] == "active", f"{camera} active", 60, namespace=camera)


def test_nodes_come_up_in_order_and_come_back_after_a_crash(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path
) -> None:
    settings = {"model": str(colour_bundle), "autostart": False}
    manager = start_node("manager_node", namespace="/cell", nodes=NAMES)
    left, _ = (start_node("perception_node", namespace=camera, **settings) for camera in CAMERAS)
    for camera in CAMERAS:
        is_active(client, camera)
    client.wait(lambda: "all 2 nodes are active" in manager.output(), what="the manager")
    steps = re.findall(r"(/\w+/perception) (configured|activated)", manager.output())
    assert steps == [(name, step) for step in ("configured", "activated") for name in NAMES]

    for step in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        change = Transition(id=step)
        assert client.call(ChangeState, f"{NAMES[1]}/change_state", transition=change).success
    left.stop(signal.SIGKILL)
    start_node("perception_node", namespace="/left", **settings)
    client.wait(lambda: manager.output().count("/left/perception activated") == 2, 60, "the new left node")
    assert "/left/perception was started again" in manager.output()
    assert state_of(client, NAMES[0]) == "active"
    assert state_of(client, NAMES[1]) == "unconfigured"  # somebody wanted it so
    assert manager.stop() == 0


def test_one_that_cannot_be_configured_stops_the_rest(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path
) -> None:
    for camera, model in (("/good", str(colour_bundle)), ("/bad", "/nowhere")):
        start_node("perception_node", namespace=camera, model=model, autostart=False)
    manager = start_node("manager_node", namespace="/cell", nodes=["/good/perception", "/bad/perception"])
    assert manager.wait() == 2
    assert re.search("error: node /bad/perception did not configure: .*nowhere", manager.output())
    assert "Traceback" not in manager.output()
    assert state_of(client, "/good/perception") == "inactive"


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["/nobody/perception"], "node /nobody/perception did not appear within 0.5 s"),
        (["/left/perception", "/left/perception"], "name each lifecycle node to bring up once"),
    ],
)
def test_what_is_not_there_is_named(start_node: Callable[..., Any], nodes: list[str], message: str) -> None:
    manager = start_node("manager_node", nodes=nodes, timeout_s=0.5)
    assert manager.wait() == 2
    assert message in manager.output()


def mca_up(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mca_perception.cli.main", "up", "multi_camera", "processes:=separate"]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_mca_up_brings_cameras_up_in_processes_of_their_own(client: Any, colour_bundle: Path) -> None:
    process = mca_up(f"model:={colour_bundle}", "namespace:=cell", "cameras:=north,south")
    try:
        for camera in ("north", "south"):
            is_active(client, f"/cell/{camera}")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "[cell/north/perception]" in output  # which of the two says it
    finally:
        process.kill()


def test_mca_up_ends_when_one_does_not_come_up(tmp_path: Path) -> None:
    process = mca_up(f"model:={tmp_path}", "cameras:=only")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 2
    assert "process 'manager' ended with code 2" in errors
    assert "node /perception/only/perception did not configure" in errors
