"""The crisis node over DDS: latency and throughput at 1, 16 and 64 posts in flight, and a load with hostile posts.

Every post is different, so that no cache answers. Posts with an image carry one of 16 JPEG files of 640 x 480 pixels.
The load keeps 16 posts in flight for ``--load-seconds``; one in twenty is hostile, and each must be answered too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from support.crisis_posts import IN_FLIGHT, SEED, hostile_posts, texts
from support.service_calls import keep_in_flight

from mca_perception.cli import reports
from mca_perception.ros.descriptions import crisis
from mca_perception.ros.processes import ProcessGroup
from mca_perception.ros.transport import prepare_process

DOMAIN = 77
HOSTILE_EVERY = 20
LOAD_IN_FLIGHT = 16


def pictures() -> list[bytes]:
    """JPEG files of smooth noise, the same on every machine."""
    rng = np.random.default_rng(SEED)
    files = []
    for _ in range(16):
        coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        files.append(cv2.imencode(".jpg", picture)[1].tobytes())
    return files


class Caller:
    """A ROS node that keeps a number of calls in flight."""

    def __init__(self) -> None:
        import rclpy
        from mca_perception_msgs.srv import ClassifyCrisis
        from rclpy.executors import SingleThreadedExecutor

        from mca_perception.ros import qos

        rclpy.init()
        self.node = rclpy.create_node("crisis_benchmark", namespace="crisis")
        self.kind = ClassifyCrisis
        self.client = self.node.create_client(ClassifyCrisis, "classify", qos_profile=qos.REQUESTS)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def wait_for_node(self, timeout_s: float = 120.0) -> bool:
        """Whether the service came up in time."""
        return bool(self.client.wait_for_service(timeout_s))

    def run(self, posts: Iterator[Any], in_flight: int) -> tuple[list[float], list[Any], float]:
        """Send posts; latencies in ms, answers, seconds in all. Ends early when an answer stays away."""
        requests = (self.kind.Request(post=post) for post in posts)
        return keep_in_flight(self.client, self._executor, requests, in_flight)

    def close(self) -> None:
        """Leave ROS."""
        import rclpy

        self._executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.try_shutdown()


def post_messages(count: int, files: list[bytes], tag: str) -> Iterator[Any]:
    """Messages of distinct posts, with an image each when there are files."""
    from mca_perception_msgs.msg import CrisisPost
    from std_msgs.msg import Header

    from mca_perception.ros.images import wrap_encoded

    images = [wrap_encoded(data, Header(), "jpeg") for data in files]
    for number, text in enumerate(texts(count)):
        chosen = [images[number % len(images)]] if images else []
        yield CrisisPost(post_id=f"{tag} {number}", event_id=tag, text=f"{text} {tag}", images=chosen)


def measure(caller: Caller, count: int, in_flight: int, files: list[bytes]) -> dict[str, float]:
    """Percentiles and throughput of one number in flight."""
    tag = f"{in_flight}{' image' if files else ''}"
    latencies, answers, seconds = caller.run(post_messages(count, files, tag), in_flight)
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "posts_per_second": round(len(latencies) / seconds, 1),
        "sent": count,
        "answered": len(answers),
    }


def load(caller: Caller, seconds: float) -> dict[str, Any]:
    """Ordinary and hostile posts for some time; what was sent, answered, refused and lost."""
    hostile = hostile_posts()
    sent: Counter[str] = Counter()

    def posts() -> Iterator[Any]:
        end = time.perf_counter() + seconds
        block = 0
        while time.perf_counter() < end:
            for number, post in enumerate(post_messages(1000, [], f"load {block}")):
                if time.perf_counter() >= end:
                    return
                kind = "ordinary" if number % HOSTILE_EVERY else "hostile"
                sent[kind] += 1
                yield post if kind == "ordinary" else next(hostile)
            block += 1

    latencies, answers, elapsed = caller.run(posts(), LOAD_IN_FLIGHT)
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "seconds": round(elapsed, 1),
        "in_flight": LOAD_IN_FLIGHT,
        "sent": dict(sent),
        "categorised": sum(answer.success for answer in answers),
        "refused_with_a_reason": sum(bool(not answer.success and answer.message) for answer in answers),
        "lost": sum(sent.values()) - len(answers),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "posts_per_second": round(len(answers) / elapsed, 1),
    }


def main() -> None:
    """Measure and write ``crisis_service-<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: see --crisis-model")
    parser.add_argument("--crisis-model", default="models/crisis", help="bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--posts", type=int, default=1000, help="posts per number in flight")
    parser.add_argument(
        "--load-seconds", type=float, default=60.0, help="length of the load; 0 leaves it out"
    )
    options = parser.parse_args()
    if importlib.util.find_spec("rclpy") is None:
        print("ROS 2 is not installed: nothing measured")
        return
    os.environ.setdefault("ROS_DOMAIN_ID", str(DOMAIN))
    prepare_process()
    lines: list[str] = []
    results: dict[str, Any] = {}
    files = pictures()
    with ProcessGroup(on_line=lambda name, line: lines.append(line)) as group:
        group.start(crisis({"model": options.crisis_model}))
        caller = Caller()
        try:
            if not caller.wait_for_node():
                raise SystemExit("\n".join(["the crisis node did not come up:", *lines[-20:]]))
            caller.run(post_messages(64, [], "warm-up"), 16)
            for modality, used in (("text", []), ("text and image", files)):
                for in_flight in IN_FLIGHT:
                    name = f"{modality}, {in_flight} in flight"
                    results[name] = measure(caller, options.posts, in_flight, used)
                    print(f"{name:28}" + "  ".join(f"{k} {v}" for k, v in results[name].items()), flush=True)
            if options.load_seconds:
                results["load"] = load(caller, options.load_seconds)
                print(f"load  {results['load']}", flush=True)
        finally:
            caller.close()
    facts = reports.environment()
    target = reports.new_folder(options.out) / f"crisis_service-{reports.device_slug(facts)}.json"
    digest = hashlib.sha256("\n".join(texts(options.posts)).encode() + b"".join(files))
    reports.write_json(
        target,
        {
            "benchmark": "crisis_service",
            "model": next((line.split("model ", 1)[1] for line in lines if "model crisis" in line), ""),
            "posts": options.posts,
            "seed": SEED,
            "input_sha256": digest.hexdigest(),
            "results": results,
            **facts,
        },
    )
    print(target)


if __name__ == "__main__":
    main()
