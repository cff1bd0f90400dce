"""`mca view`: messages reach a browser's connection, and topics are read only while somebody looks."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

pytestmark = [
    pytest.mark.xdist_group("test_web_view"),
    pytest.mark.skipif(importlib.util.find_spec("foxglove") is None, reason="foxglove-sdk is not installed"),
]

WATCHER = """
import base64, json, os, socket, struct, sys

port, topic = int(sys.argv[1]), sys.argv[2]
connection = socket.create_connection(("127.0.0.1", port), 10)
connection.settimeout(60)
key = base64.b64encode(os.urandom(16)).decode()
connection.sendall((
    f"GET / HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    f"Sec-WebSocket-Key: {key}\\r\\nSec-WebSocket-Version: 13\\r\\n"
    "Sec-WebSocket-Protocol: foxglove.sdk.v1\\r\\n\\r\\n").encode())
reader = connection.makefile("rb")
while reader.readline().strip():
    pass

def receive():
    first, second = reader.read(2)
    length = second & 127
    if length == 126:
        (length,) = struct.unpack(">H", reader.read(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", reader.read(8))
    return first & 15, reader.read(length)

def send(content):
    data = json.dumps(content).encode()
    mask = os.urandom(4)
    size = bytes([128 | len(data)]) if len(data) < 126 else bytes([254]) + struct.pack(">H", len(data))
    masked = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
    connection.sendall(bytes([129]) + size + mask + masked)

while True:
    kind, data = receive()
    if kind == 1:
        content = json.loads(data)
        for channel in content.get("channels", []) if content.get("op") == "advertise" else []:
            if channel["topic"] == topic:
                print("offered", channel["encoding"], channel["schemaName"], flush=True)
                send({"op": "subscribe", "subscriptions": [{"id": 1, "channelId": channel["id"]}]})
    elif kind == 2 and data[0] == 1:
        print("message", len(data) - 13, flush=True)
        break
"""


@pytest.fixture
def port(request: pytest.FixtureRequest, start_node: Callable[..., Any]) -> Iterator[str]:
    """Port of a running server: of `mca view`, or of the node that launch files start."""
    if request.param == "node":
        node = start_node("web_view_node", namespace="/", port=0)
        deadline = time.monotonic() + 30
        while not (found := re.search(r"ws://127\.0\.0\.1:(\d+)", node.output())):
            assert time.monotonic() < deadline, node.output()
            time.sleep(0.1)
        yield found[1]
        assert node.stop() == 0
        return
    command = [sys.executable, "-m", "mca_perception.cli.main", "view", "--port", "0", "--seconds", "120"]
    view = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert view.stdout is not None
    found = re.search(r"ws://127\.0\.0\.1:(\d+)", view.stdout.readline())
    assert found is not None
    yield found[1]
    view.terminate()
    view.communicate(timeout=20)


@pytest.mark.parametrize("port", ["command", "node"], indirect=True)
def test_a_browser_gets_the_messages(
    port: str, start_node: Callable[..., Any], client: Any, colour_bundle: Path
) -> None:
    start_node("perception_node", model=str(colour_bundle))
    watcher = [sys.executable, "-c", WATCHER, port, "/diagnostics"]
    seen = subprocess.run(watcher, capture_output=True, text=True, timeout=90, check=True).stdout
    assert "offered cdr diagnostic_msgs/msg/DiagnosticArray" in seen
    assert int(seen.split("message ")[1]) > 100
    overlay = "/perception/overlay/compressed"
    assert client.node.count_subscribers(overlay) == 0  # nobody looked at it


def test_a_port_in_use_is_named(start_node: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = start_node("web_view_node", namespace="/", port=port)
        assert node.wait() == 2
        assert f"cannot serve on 127.0.0.1:{port}" in node.output()
