"""The retrieval node over DDS: latency and searches per second at 1, 4 and 16 in flight, alone and beside an index job.

The index holds ``--images`` made-up vectors of the bundle's width, which are scanned exactly. Every text is different.
Beside a job, the action ``index`` adds pictures to the same index, so that searches meet a growing one; how many came
in meanwhile, and whether the job outlasted the searches, is in the result.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from support.service_calls import ANSWER_TIMEOUT_S, keep_in_flight

from mca_perception.cli import reports
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.store import ImageRecord, RetrievalStore
from mca_perception.ros.descriptions import retrieval
from mca_perception.ros.processes import ProcessGroup
from mca_perception.ros.transport import prepare_process

NAME = "retrieval_service"
DOMAIN = 78
SEED = 31_001
IN_FLIGHT = (1, 4, 16)
TOP_N = 20
ROWS_AT_ONCE = 10_000
WORDS = (
    *(
        "small",
        "large",
        "tall",
        "wide",
        "red",
        "orange",
        "yellow",
        "green",
        "turquoise",
        "blue",
        "purple",
        "pink",
    ),
    *(
        "brown",
        "black",
        "white",
        "grey",
        "box",
        "carton",
        "book",
        "bottle",
        "can",
        "tin",
        "jar",
        "pouch",
        "bag",
    ),
    *(
        "tube",
        "card",
        "mailer",
        "envelope",
        "tea",
        "soap",
        "shampoo",
        "cereal",
        "cable",
        "lamp",
        "pen",
        "cream",
    ),
)


def texts(count: int, tag: str) -> Iterator[str]:
    """Distinct descriptions of two sentences."""
    rng = np.random.default_rng([SEED, *tag.encode()])
    for number in range(count):
        first, second = (" ".join(rng.choice(WORDS, 8)) for _ in range(2))
        yield f"A {first}. It is a {second}, number {number}."


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of smooth noise, the same on every machine; no two folders share a name, which would be one id."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([SEED, *folder.name.encode()])
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{folder.name}-{number:06d}.jpg"), cv2.resize(coarse, (320, 240)))


def write_store(folder: Path, encoder: DualEncoder, images: int) -> None:
    """A store of made-up vectors that belongs to the encoder's bundle."""
    with RetrievalStore.write(
        folder, image_model=encoder.image_fingerprint, dimension=encoder.dimension
    ) as store:
        for first in range(0, images, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, images - first)
            rows = np.random.default_rng([SEED, first]).standard_normal(
                (count, encoder.dimension), np.float32
            )
            facts = {"bundle": str(encoder.bundle.path.resolve())}
            store.append([ImageRecord(f"made-up {first + i}") for i in range(count)], rows, facts=facts)


class Caller:
    """A ROS node that keeps a number of searches in flight, and starts and cancels index jobs."""

    def __init__(self) -> None:
        import rclpy
        from mca_perception_msgs.action import BuildIndex
        from mca_perception_msgs.srv import IndexInfo, SearchImages
        from rclpy.action.client import ActionClient
        from rclpy.executors import SingleThreadedExecutor

        from mca_perception.ros import qos

        rclpy.init()
        self.node = rclpy.create_node("retrieval_benchmark", namespace="retrieval")
        self._search, self._info, self._build = SearchImages, IndexInfo, BuildIndex
        self._client: Any = self.node.create_client(SearchImages, "search", qos_profile=qos.REQUESTS)
        self._infos: Any = self.node.create_client(IndexInfo, "index_info", qos_profile=qos.REQUESTS)
        self._jobs: Any = ActionClient(self.node, BuildIndex, "index")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._progress: Any = None

    def wait_for_node(self, timeout_s: float = 120.0) -> bool:
        """Whether search and action came up in time."""
        return bool(self._client.wait_for_service(timeout_s) and self._jobs.wait_for_server(timeout_s))

    def run(self, queries: Iterator[str], in_flight: int) -> tuple[list[float], list[Any], float]:
        """Search; latencies in ms, answers, seconds in all. Ends early when an answer stays away."""
        requests = (self._search.Request(text=text, top_n=TOP_N, use_summary=True) for text in queries)
        return keep_in_flight(self._client, self._executor, requests, in_flight)

    def images(self) -> int:
        """Images in the index now."""
        return int(self._wait(self._infos.call_async(self._info.Request())).image_count)

    def start_job(self, folder: Path) -> Any:
        """Start to index a folder; returns the goal, whose first batch is on the disk.

        Raises:
            SystemExit: the job was refused, or adds nothing.
        """
        before = self.images()
        request = self._build.Goal(source=str(folder), resume=True)
        goal = self._wait(self._jobs.send_goal_async(request, feedback_callback=self._take))
        if not goal.accepted:
            raise SystemExit("the node refused the index job")
        end = time.perf_counter() + ANSWER_TIMEOUT_S
        while self.images() == before:
            if time.perf_counter() > end:
                raise SystemExit(f"the job for {folder} added nothing in {ANSWER_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        return goal

    def end_job(self, goal: Any) -> bool:
        """Cancel a job; returns whether it was still at work."""
        at_work = bool(self._progress.done < self._progress.total and self._progress.stage == "encode")
        self._wait(goal.cancel_goal_async())
        self._wait(goal.get_result_async())
        return at_work

    def _take(self, message: Any) -> None:
        self._progress = message.feedback

    def _wait(self, future: Any) -> Any:
        self._executor.spin_until_future_complete(future, timeout_sec=ANSWER_TIMEOUT_S)
        if not future.done():
            raise SystemExit("the retrieval node does not answer")
        return future.result()

    def close(self) -> None:
        """Leave ROS."""
        import rclpy

        self._jobs.destroy()
        self._executor.shutdown(timeout_sec=1)
        self.node.destroy_node()
        rclpy.try_shutdown()


def measure(caller: Caller, count: int, in_flight: int, folder: Path | None) -> dict[str, Any]:
    """Percentiles and throughput of one number in flight, beside a job that indexes a folder if there is one."""
    goal = caller.start_job(folder) if folder else None
    before = caller.images()
    latencies, answers, seconds = caller.run(texts(count, f"{in_flight} {folder is not None}"), in_flight)
    found: dict[str, Any] = {}
    if goal is not None:
        added = caller.images() - before
        found = {"images_added_meanwhile": added, "job_outlasted_searches": caller.end_job(goal)}
    p50, p99 = np.percentile(latencies, (50, 99))
    stages = [answer.timing for answer in answers if answer.success]
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "searches_per_second": round(len(latencies) / seconds, 1),
        "p50_ms_in_the_node": round(float(np.median([timing.total_ms for timing in stages])), 2),
        "sent": count,
        "answered": len(stages),
        **found,
    }


def main() -> None:
    """Measure and write ``retrieval_service-<device>.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="not used: see --retrieval-model")
    parser.add_argument("--retrieval-model", type=Path, default=Path("models/retrieval"), help="bundle")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=int, default=100_000, help="made-up vectors in the index")
    parser.add_argument("--searches", type=int, default=300, help="searches per number in flight")
    parser.add_argument("--pictures", type=int, default=6000, help="pictures of each index job")
    parser.add_argument("--note", default="", help="what else has to be known about this run")
    options = parser.parse_args()
    if importlib.util.find_spec("rclpy") is None:
        print("ROS 2 is not installed: nothing measured")
        return
    if not (options.retrieval_model / "manifest.json").is_file():
        print(f"{NAME} needs a dual encoder and is left out: name its bundle with --retrieval-model")
        return
    os.environ.setdefault("ROS_DOMAIN_ID", str(DOMAIN))
    prepare_process()
    encoder = DualEncoder.from_bundle(options.retrieval_model)
    lines: list[str] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        store = Path(work) / "images.store"
        write_store(store, encoder, options.images)
        folders = [Path(work) / f"pictures-{in_flight}" for in_flight in IN_FLIGHT]
        for folder in folders:
            write_pictures(folder, options.pictures)
        with ProcessGroup(on_line=lambda name, line: lines.append(line)) as group:
            group.start(retrieval({"store": str(store), "model": str(options.retrieval_model)}))
            caller = Caller()
            try:
                if not caller.wait_for_node():
                    raise SystemExit("\n".join(["the retrieval node did not come up:", *lines[-20:]]))
                caller.run(texts(20, "warm-up"), 4)
                for job in (False, True):
                    for in_flight, folder in zip(IN_FLIGHT, folders, strict=True):
                        name = f"{in_flight} in flight{', indexing' if job else ''}"
                        results[name] = measure(caller, options.searches, in_flight, folder if job else None)
                        print(
                            f"{name:24}" + "  ".join(f"{k} {v}" for k, v in results[name].items()), flush=True
                        )
            finally:
                caller.close()
    digest = hashlib.sha256(
        "\n".join(text for n in IN_FLIGHT for text in texts(options.searches, f"{n} False")).encode()
    )
    report = {
        "benchmark": NAME,
        "note": options.note,
        "model": encoder.name,
        "images": options.images,
        "width": encoder.dimension,
        "top_n": TOP_N,
        "seed": SEED,
        "input_sha256": digest.hexdigest(),
        "results": results,
        **reports.environment(),
    }
    target = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(report)}.json"
    reports.write_json(target, report)
    print(target)


if __name__ == "__main__":
    main()
