"""Camera -> node -> subscriber as three processes over DDS: latency, drops, CPU and memory, ours beside the habit.

Two models: ``null`` sees nothing and takes no time, which leaves transport and conversion; the bundle of ``--model``.
``ours`` is the perception node, ``habit`` a node with a queue of 10, copies as cv_bridge makes them, and the model in
the image callback. The overhead of a node is the latency from the image's stamp to the arrival of its objects, less the
time in the pipeline. Transports: the shipped Fast DDS profile, and the middleware's defaults.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from support.null_model import write_null_model

from mca_perception.cli import reports
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.ros.engine import bundle_folder
from mca_perception.ros.statistics import percentiles
from mca_perception.ros.transport import PROFILE_VARIABLE, prepare_process

SIZES = {"640x480": (640, 480), "1080p": (1920, 1080), "2448x2048": (2448, 2048)}
SUPPORT = Path(__file__).with_name("support")
DOMAIN = 78
READY_S, SETTLE_S = 90.0, 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


def conversions(repeats: int) -> dict[str, Any]:
    """Milliseconds to fill an ``Image`` message, by way and size; medians of one interleaved run."""
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from mca_perception.ros.images import to_image_message

    def ours(picture: Any) -> None:
        to_image_message(picture, "rgb8", Header())

    def habit(picture: Any) -> None:
        Image().data.frombytes(picture.tobytes())

    def ndarray(picture: Any) -> None:
        Image().data = picture.reshape(-1)

    ways: dict[str, Callable[[Any], None]] = {"ours": ours, "cv_bridge": habit, "ndarray": ndarray}
    figures: dict[str, Any] = {}
    for name, (width, height) in SIZES.items():
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, fill in ways.items():
                started = time.perf_counter()
                fill(picture)
                times[way].append((time.perf_counter() - started) * 1e3)
        medians = {way: round(float(np.median(values)), 4) for way, values in times.items()}
        figures[name] = {**medians, "ndarray_over_ours": round(medians["ndarray"] / medians["ours"], 1)}
    return figures


class Subscriber:
    """Takes the objects: when each arrived after its image's stamp, and how long the pipeline had it."""

    def __init__(self, namespace: str) -> None:
        import rclpy
        from mca_perception_msgs.msg import PerceivedObjects
        from rclpy.executors import SingleThreadedExecutor

        from mca_perception.ros import qos
        from mca_perception.ros.conversions import stamp_ns

        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("bench_subscriber", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.latency_ms: list[float] = []
        self.processing_ms: list[float] = []
        self.arrivals: list[float] = []

        def take(message: Any) -> None:
            now = self.node.get_clock().now().nanoseconds
            self.latency_ms.append((now - stamp_ns(message.header.stamp)) / 1e6)
            self.processing_ms.append(message.timing.processing_ms)
            self.arrivals.append(time.monotonic())

        self.node.create_subscription(PerceivedObjects, f"{namespace}/objects", take, qos.RESULTS)

    def spin_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Run callbacks; whether it was done in time."""
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > end:
                return False
            self._executor.spin_once(timeout_sec=0.1)
        return True

    def close(self) -> None:
        """Leave the network."""
        import rclpy

        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


@contextmanager
def running(kind: str, model: Path, namespace: str, policy: str) -> Iterator[subprocess.Popen[bytes]]:
    """The node under test as a process."""
    if kind == "ours":
        command = [sys.executable, "-m", "mca_perception.ros.perception_node", "--ros-args"]
        command += ["-r", f"__ns:={namespace}", "-p", f"model:={model}", "-p", f"frame_policy:={policy}"]
    else:
        command = [sys.executable, str(SUPPORT / "ros_habit_node.py"), str(model), namespace]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def usage(pid: int) -> tuple[float, float]:
    """Processor seconds and resident MiB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / _TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(kind: str, model: Path, size: str, encoding: str, transport: str, options: Any) -> dict[str, Any]:
    """One case: ``frames`` images at ``rate_hz``."""
    namespace = f"/bench{time.monotonic_ns() % 10**9}"
    width, height = SIZES[size]
    subscriber = Subscriber(namespace)
    camera = [sys.executable, str(SUPPORT / "ros_camera.py"), f"{namespace}/image"]
    camera += [*map(str, (width, height, encoding, options.frames, options.rate_hz)), transport]
    try:
        with running(kind, model, namespace, "every_frame") as node:
            ready = subscriber.spin_until(
                lambda: bool(subscriber.node.count_subscribers(f"{namespace}/image")), READY_S
            )
            if not ready or node.poll() is not None:
                return {"failed": "the node did not come up"}
            subscriber.spin_until(lambda: False, 1.0)
            sender = subprocess.Popen(camera, stdout=subprocess.PIPE)
            cpu, _ = usage(node.pid)
            started = time.monotonic()
            subscriber.spin_until(lambda: sender.poll() is not None, 90 + options.frames / options.rate_hz)
            subscriber.spin_until(lambda: len(subscriber.latency_ms) >= options.frames, SETTLE_S)
            cpu_after, rss = usage(node.pid)
            elapsed = time.monotonic() - started
            sent = json.loads(sender.communicate()[0] or b'{"sent": 0, "publish_ms": 0}')
    finally:
        subscriber.close()
    skip = min(3, len(subscriber.latency_ms) // 2)  # first frames allocate
    overhead = np.array(subscriber.latency_ms[skip:]) - np.array(subscriber.processing_ms[skip:])
    span = subscriber.arrivals[-1] - subscriber.arrivals[skip] if len(subscriber.arrivals) > skip + 1 else 0.0
    return {
        "sent": sent["sent"],
        "received": len(subscriber.latency_ms),
        "fps": round((len(subscriber.arrivals) - skip - 1) / span, 2) if span else 0.0,
        "latency_ms": percentiles(subscriber.latency_ms[skip:]),
        "processing_ms": percentiles(subscriber.processing_ms[skip:]),
        "overhead_ms": percentiles(overhead.tolist()),
        "publish_ms": round(sent["publish_ms"], 3),
        "cpu_percent": round(100 * (cpu_after - cpu) / elapsed, 1),
        "rss_mib": round(rss, 1),
    }


@contextmanager
def transport_of(name: str) -> Iterator[None]:
    """Let children use the shipped profile, or the middleware's defaults."""
    before = os.environ.pop(PROFILE_VARIABLE, None)
    if name == "profile":
        prepare_process()
    else:
        os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "DEFAULT"
    try:
        yield
    finally:
        os.environ.pop("FASTDDS_BUILTIN_TRANSPORTS", None)
        os.environ.pop(PROFILE_VARIABLE, None)
        if before is not None:
            os.environ[PROFILE_VARIABLE] = before


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str, str, str]]:
    """Model, transport, size, encoding, node."""
    for transport in options.transports:
        for model in options.models:
            for size in options.sizes:
                for encoding in options.encodings:
                    for kind in ("ours", "habit"):
                        yield model, transport, size, encoding, kind


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/nano", help="bundle besides the null model")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("results"), help="folder of results"
    )
    parser.add_argument("--frames", type=int, default=40, help="images per case")
    parser.add_argument(
        "--rate-hz", type=float, default=5.0, help="images per second; keep it below capacity"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--encodings", nargs="+", choices=("raw", "jpeg"), default=["raw", "jpeg"])
    parser.add_argument("--models", nargs="+", choices=("null", "model"), default=["null", "model"])
    parser.add_argument(
        "--transports", nargs="+", choices=("profile", "default"), default=["profile", "default"]
    )
    options = parser.parse_args()
    os.environ["ROS_DOMAIN_ID"] = str(DOMAIN)
    with tempfile.TemporaryDirectory(prefix="mca-bench-") as folder:
        null = write_null_model(Path(folder) / "null")
        models = {"null": null, "model": Path(bundle_folder(options.model)).resolve()}
        results = []
        for model, transport, size, encoding, kind in cases(options):
            with transport_of(transport):
                figures = measure(kind, models[model], size, encoding, transport, options)
            case = {"node": kind, "model": model, "transport": transport, "size": size, "encoding": encoding}
            results.append({**case, **figures})
            print(json.dumps(results[-1]), flush=True)
        facts = {
            **reports.environment(("rosbags",)),
            "model": reports.model_facts(ModelBundle.open(models["model"])),
            "seed": 0,
            "input_hash": hashlib.sha256(
                np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8).tobytes()
            ).hexdigest(),
            "frames": options.frames,
            "rate_hz": options.rate_hz,
            "load": os.getloadavg()[0],
            "conversion_ms": conversions(5),
            "results": results,
        }
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"ros-{reports.device_slug(facts)}.json"
    reports.write_json(target, facts)
    print(f"-> {target}")


if __name__ == "__main__":
    main()
