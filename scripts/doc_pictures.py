"""Makes the pictures of docs/ros_tools.md from running nodes: the overlay as published, and what `mca view` serves.

The nodes run on synthesised totes with depth, as processes over DDS, on a ROS domain of their own. The channels that
the web view offers to a browser are recorded instead; the second picture shows the messages of one frame, arranged as
in config/foxglove/armbench.json. Foxglove draws its panels in its own style.

Needs the extras `ros`, `foxglove` and `train` (matplotlib): `.venv/bin/python scripts/doc_pictures.py`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")
import foxglove
import matplotlib.pyplot as plt
import numpy as np
import rclpy
from foxglove.mcap import MCAPWriteOptions
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from mca_perception.ros.demo import private_environment
from mca_perception.ros.descriptions import armbench
from mca_perception.ros.processes import ProcessGroup
from mca_perception.ros.transport import prepare_process
from mca_perception.ros.web_view import WebView

NAMESPACE = "/perception"
MODEL = "models/nano"
SEED, TOTES, PRODUCTS = 90_001, 16, 60
RATE_HZ = 2.0
"""Slow enough for the view to get every message of a frame: it drops what is old."""
LIMIT_S = 300.0
MOST_BYTES = 300_000


@dataclass
class Seen:
    """What came through the web view.

    Attributes:
        frames: last message by topic, by header stamp in nanoseconds.
        latencies: (seconds since the first of all, milliseconds) by topic.
        diagnostics: status of every node at the last frame.
    """

    frames: dict[str, dict[int, Any]] = field(default_factory=dict)
    latencies: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)


def make_data(folder: Path) -> tuple[Path, Path]:
    """Totes with depth, and the gallery of their products."""
    mca = [sys.executable, "-m", "mca_perception.cli.main"]
    totes, gallery = folder / "totes", folder / "products.gallery"
    settings = ["--count", str(TOTES), "--seed", str(SEED), "--products", str(PRODUCTS), "--split", "test"]
    subprocess.run([*mca, "synth", "totes", "--out", str(totes), "--depth", *settings], check=True)
    references = str(totes / "Reference_Images")
    subprocess.run(
        [*mca, "gallery", "import", references, "--path", str(gallery), "--model", MODEL], check=True
    )
    return totes / "mix-object-tote", gallery


def record(source: Path, gallery: Path, target: Path) -> None:
    """Run the nodes, and keep everything that the web view passes on."""
    os.environ.update(private_environment(target.parent))
    prepare_process()
    rclpy.init()
    node = rclpy.create_node("_doc_pictures")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    nodes = armbench(
        {
            "source": str(source),
            "gallery": str(gallery),
            "model": MODEL,
            "rate_hz": str(RATE_HZ),
            "tracking": "false",
        }
    )
    with (
        foxglove.open_mcap(target, writer_options=MCAPWriteOptions(profile="ros2")),
        ProcessGroup(on_line=lambda name, line: print(f"[{name}] {line}")) as group,
    ):
        view = WebView(node, [NAMESPACE])
        view.follow()  # connected before the first image
        group.start(nodes)
        end = time.monotonic() + LIMIT_S
        while group.wait(0.01) is None and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
        for _ in range(20):  # what is still under way
            executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()


def read(recording: Path) -> Seen:
    """Sort the recorded messages by topic and stamp."""
    seen = Seen()
    first = 0  # time of the first latency
    heard: dict[str, Any] = {}
    with AnyReader([recording], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        for connection, time_ns, raw in reader.messages():
            message: Any = reader.deserialize(raw, connection.msgtype)
            if connection.topic == "/diagnostics":
                heard |= {status.name: status for status in message.status}
            elif connection.topic.endswith("_ms"):
                first = first or time_ns
                point = ((time_ns - first) / 1e9, message.data)
                seen.latencies.setdefault(connection.topic, []).append(point)
            else:
                stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
                seen.diagnostics = dict(heard)
                seen.frames.setdefault(connection.topic.removeprefix(f"{NAMESPACE}/"), {})[stamp] = message
    return seen


def cloud(message: Any) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Points ``[N, 3]`` in metres and their colours ``[N, 3]`` within 0 to 1."""
    offsets = {entry.name: entry.offset for entry in message.fields}
    kinds = {"x": "<f4", "y": "<f4", "z": "<f4", "rgb": "<u4"}
    layout = np.dtype(
        {
            "names": list(kinds),
            "formats": list(kinds.values()),
            "offsets": [offsets[name] for name in kinds],
            "itemsize": message.point_step,
        }
    )
    points = np.frombuffer(message.data.tobytes(), layout)
    colours = np.stack([points["rgb"] >> shift & 255 for shift in (16, 8, 0)], axis=1) / 255
    return np.stack([points[name] for name in "xyz"], axis=1), colours


def draw(seen: Seen, stamp: int, target: Path) -> None:
    """One frame in the panels of the layout."""
    figure: Any = plt.figure(figsize=(14, 8), dpi=80, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(6, 4))
    picture, plot = left.subplots(2, 1, height_ratios=(7, 3))
    overlay = cv2.imdecode(seen.frames["overlay/compressed"][stamp].data, cv2.IMREAD_COLOR_RGB)
    picture.imshow(overlay)
    picture.set_title(f"{NAMESPACE}/overlay/compressed", fontsize=9)
    picture.axis("off")
    for topic, points in seen.latencies.items():
        plot.plot(*zip(*points, strict=True), marker=".", label=topic)
    plot.set(xlabel="s", ylabel="ms", ylim=(0, None))
    plot.legend(fontsize=7)
    top, bottom = right.subfigures(2, 1)
    space = top.add_subplot(projection="3d")
    xyz, colours = cloud(seen.frames["object_points"][stamp])
    space.scatter(xyz[:, 0], xyz[:, 1], xyz[:, 2], c=colours, s=1)
    space.view_init(elev=-65, azim=-90)
    space.set_title(f"{NAMESPACE}/object_points (m)", fontsize=9)
    space.set_aspect("equal")
    space.set_zticks([])  # seen from above they would lie on each other
    space.tick_params(labelsize=6)
    lists = bottom.subplots(1, 2, width_ratios=(5, 4))
    items = seen.frames["objects"][stamp].objects
    rows = [
        f"{item.id:3d} {item.score:.2f}  {item.products[0].product_id if item.products else item.label}"
        for item in items
    ]
    verdicts = [f"{name}\n  {status.message}" for name, status in sorted(seen.diagnostics.items())]
    for panel, title, lines in zip(
        lists, (f"{NAMESPACE}/objects", "/diagnostics"), (rows, verdicts), strict=True
    ):
        panel.set_title(title, fontsize=9, loc="left")
        panel.text(0, 1, "\n".join(lines), family="monospace", fontsize=7, va="top")
        panel.axis("off")
    figure.savefig(target, pil_kwargs={"quality": 85})


def main() -> None:
    """Make both pictures, of the first frame of which everything was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="Folder of the pictures.")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name:
        source, gallery = make_data(Path(name))
        recording = Path(name, "view.mcap")
        record(source, gallery, recording)
        seen = read(recording)
    shown = ("overlay/compressed", "object_points", "objects")
    stamp = min(set.intersection(*(set(seen.frames[topic]) for topic in shown)))
    pictures = out / "overlay.jpg", out / "web_view.jpg"
    pictures[0].write_bytes(seen.frames["overlay/compressed"][stamp].data.tobytes())
    draw(seen, stamp, pictures[1])
    for path in pictures:
        size = path.stat().st_size
        print(f"{path}: {size:,} bytes")
        if size > MOST_BYTES:
            raise SystemExit(f"{path} is larger than {MOST_BYTES:,} bytes; make it smaller")


if __name__ == "__main__":
    main()
