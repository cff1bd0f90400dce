"""Camera -> node -> subscriber as three processes over DDS: latency, drops, CPU and memory, ours beside the habit.

Two models: ``null`` sees nothing and takes no time, which leaves transport and conversion; the bundle of ``--model``.
``ours`` is the perception node, ``habit`` a node with a queue of 10, copies as cv_bridge makes them, and the model in
the image callback. ``bare`` is no node at all: a subscriber of the camera. Transports: the shipped Fast DDS profile,
and the middleware's defaults (those with the first of the models only: it does not change what they cost).

Milliseconds of a frame, as percentiles over frames:

latency
    from the image's stamp, just before it is sent, to the arrival of its objects at the subscriber
publish
    of that, in the camera's call of ``publish``: serialised and copied to shared memory, which no node can change
pipeline
    of that, in the node from an image to its objects, as the node reports it; model is the part of it in the graphs and
    in identification, the rest resizes images and masks
overhead
    latency - publish - pipeline: what node and middleware add, decoding of JPEG included
besides_model
    latency - publish - model: the same with the resizing of images and masks
transport_p50
    the overhead of ``bare`` with the same images in the same run: the part of the overhead that everybody pays who
    takes these images as messages in Python. What is left is the node's own, and the way of its objects to the
    subscriber

CPU is that of the node between its first and its last result, in percent of one core. A node serves all sizes and
encodings of its turn, small ones first: RSS is that after the case.

``--awake`` keeps the cores from halting, with processes that run only when nothing else wants to. For virtual machines:
their host may let a core that halted wait before it runs again, and that wait would be measured instead of the nodes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
BARE = "bare"
START_S, SETTLE_S = 90.0, 20.0
FIRST_FRAMES = 3
"""Left out: they allocate."""


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


@contextmanager
def running(
    kind: str, model: Path | None, namespace: str, policy: str
) -> Iterator[subprocess.Popen[bytes] | None]:
    """The node under test as a process; none for the bare subscriber."""
    if kind == BARE:
        yield None
        return
    if kind == "ours":
        command = [sys.executable, "-m", "mca_perception.ros.perception_node", "--ros-args"]
        command += ["-r", f"__ns:={namespace}", "-p", f"model:={model}", "-p", f"frame_policy:={policy}"]
    else:
        command = [sys.executable, str(SUPPORT / "ros_habit_node.py"), str(model), namespace]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, for one that is killed leaves its shared memory behind; insist after a while."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def process_of(script: str, *arguments: Any) -> subprocess.Popen[str]:
    """A process of the benchmark that prints what it found."""
    command = [sys.executable, str(SUPPORT / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answer_of(process: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    """What a process prints at its end; it is asked to end after the timeout."""
    try:
        text, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        text, _ = process.communicate(timeout=20)
    return dict(json.loads(text)) if text else {}


def measure(
    node: subprocess.Popen[bytes] | None, namespace: str, size: str, encoding: str, options: Any
) -> dict[str, Any]:
    """One case: ``frames`` images at ``rate_hz`` through a node, or none."""
    what, pid = ("objects", node.pid) if node else (encoding, 0)
    listener = process_of("ros_listener.py", namespace, what, options.frames, pid)
    camera = None
    try:
        assert listener.stdout is not None
        if listener.stdout.readline().strip() != "ready":
            return {"failed": "the node did not come up"}
        camera = process_of(
            "ros_camera.py", f"{namespace}/image", *SIZES[size], encoding, options.frames, options.rate_hz
        )
        sent = answer_of(camera, START_S + options.frames / options.rate_hz)
        heard = answer_of(listener, SETTLE_S)
    finally:
        for process in (listener, camera):
            if process is not None:
                end(process)
    if not sent or not heard:
        return {"failed": "camera or subscriber ended early"}
    return figures(sent, heard)


def figures(sent: dict[str, Any], heard: dict[str, Any]) -> dict[str, Any]:
    """The figures of one case.

    Args:
        sent: of the camera: ``sent``, and ``publish_ms`` by stamp.
        heard: of the subscriber: ``frames`` by stamp (latency, pipeline, model), ``seconds``, ``cpu_s``, ``rss_mib``.
    """
    stamps = sorted(heard["frames"], key=int)
    received, seconds = len(stamps), heard["seconds"]
    stamps = [stamp for stamp in stamps[min(FIRST_FRAMES, received // 2) :] if stamp in sent["publish_ms"]]
    publish = np.array([sent["publish_ms"][stamp] for stamp in stamps])
    latency, pipeline, model = np.array([heard["frames"][stamp] for stamp in stamps]).reshape(-1, 3).T
    times = {
        "latency": latency,
        "publish": publish,
        "pipeline": pipeline,
        "model": model,
        "overhead": latency - publish - pipeline,
        "besides_model": latency - publish - model,
    }
    return {
        "sent": sent["sent"],
        "received": received,
        "fps": round((received - 1) / seconds, 2) if seconds else 0.0,
        **{f"{name}_ms": percentiles(values.tolist()) for name, values in times.items()},
        "cpu_percent": round(100 * heard["cpu_s"] / seconds, 1) if seconds else 0.0,
        "rss_mib": round(heard["rss_mib"], 1),
    }


@contextmanager
def cores_awake() -> Iterator[None]:
    """Keep every core busy with a process of the scheduling class that gives way to all others; Linux only."""
    spin = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for spinner in spinners:
            end(spinner)


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


def turns(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Transport, model and node; the bare subscriber comes first."""
    for transport in options.transports:
        yield transport, "", BARE
        for model in options.models if transport == options.transports[0] else options.models[:1]:
            for kind in ("ours", "habit"):
                yield transport, model, kind


def results(options: argparse.Namespace, models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Every case with its figures."""
    bare: dict[tuple[str, str, str], float | None] = {}
    for transport, model, kind in turns(options):
        namespace = f"/bench{time.monotonic_ns() % 10**9}"
        with transport_of(transport), running(kind, models.get(model), namespace, "every_frame") as node:
            for size in options.sizes:
                for encoding in options.encodings:
                    found = measure(node, namespace, size, encoding, options)
                    images = (transport, size, encoding)
                    if kind == BARE:
                        bare[images] = found.get("overhead_ms", {}).get("p50")
                    case = dict(zip(("transport", "size", "encoding"), images, strict=True))
                    yield {"node": kind, "model": model, **case, **found, "transport_p50_ms": bare[images]}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/nano", help="bundle besides the null model")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("results"), help="folder of results"
    )
    parser.add_argument("--frames", type=int, default=30, help="images per case")
    parser.add_argument(
        "--rate-hz", type=float, default=5.0, help="images per second; keep it below capacity"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of the conversions")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--encodings", nargs="+", choices=("raw", "jpeg"), default=["raw", "jpeg"])
    parser.add_argument("--models", nargs="+", choices=("null", "model"), default=["null", "model"])
    parser.add_argument(
        "--transports", nargs="+", choices=("profile", "default"), default=["profile", "default"]
    )
    parser.add_argument(
        "--awake", action="store_true", help="keep the cores from halting: for virtual machines"
    )
    options = parser.parse_args()
    os.environ["ROS_DOMAIN_ID"] = str(DOMAIN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up of the processes
    load = os.getloadavg()[0]
    awake = cores_awake() if options.awake else nullcontext()
    with awake, tempfile.TemporaryDirectory(prefix="mca-bench-") as folder:
        null = write_null_model(Path(folder) / "null")
        models = {"null": null, "model": Path(bundle_folder(options.model)).resolve()}
        rows = []
        for row in results(options, models):
            rows.append(row)
            print(json.dumps(row), flush=True)
        facts = {
            **reports.environment(("rosbags",)),
            "model": reports.model_facts(ModelBundle.open(models["model"])),
            "seed": 0,
            "input_hash": hashlib.sha256(
                np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8).tobytes()
            ).hexdigest(),
            "frames": options.frames,
            "rate_hz": options.rate_hz,
            "awake": options.awake,
            "load_at_start": load,
            "conversion_ms": conversions(options.repeats),
            "results": rows,
        }
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"ros-{reports.device_slug(facts)}.json"
    reports.write_json(target, facts)
    print(f"-> {target}")


if __name__ == "__main__":
    main()
