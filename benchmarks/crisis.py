"""Latency and throughput of the crisis service without its transport, at 1, 16 and 64 posts in flight, text only.

Posts are made up from words of several scripts, 5 to 40 words each; with ``--data`` they are the texts of CrisisMMD's
dev split instead. Every post is different, so that no cache answers; a last pass sends duplicates.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.crisis_posts import IN_FLIGHT, SEED, texts

from mca_perception.cli import reports
from mca_perception.crisis.classifier import CrisisClassifier
from mca_perception.crisis.posts import Post
from mca_perception.crisis.service import CrisisService, ServiceSettings
from mca_perception.datasets.crisismmd import read_split
from mca_perception.resources import resource_path


def posts(count: int, data: Path | None) -> list[Post]:
    """Distinct posts, the same on every machine."""
    if data is not None:
        real = read_split(data, "informative", "dev").texts
        return [Post(f"{real[i % len(real)]} {i}") for i in range(count)]
    return [Post(text) for text in texts(count)]


def run(service: CrisisService, batch: Sequence[Post], in_flight: int) -> tuple[list[float], float]:
    """Send posts from ``in_flight`` threads, each waiting for its answer; latencies in ms and seconds in all."""
    waiting: Iterator[Post] = iter(batch)
    lock, latencies = threading.Lock(), []

    def client() -> None:
        while True:
            with lock:
                post = next(waiting, None)
            if post is None:
                return
            started = time.perf_counter()
            service.classify(post, timeout=60)
            elapsed = (time.perf_counter() - started) * 1000
            with lock:
                latencies.append(elapsed)

    threads = [threading.Thread(target=client) for _ in range(in_flight)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, time.perf_counter() - started


def figures(latencies: list[float], seconds: float) -> dict[str, float]:
    """Percentiles and throughput."""
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "posts_per_second": round(len(latencies) / seconds, 1),
    }


def main() -> None:
    """Measure and write ``crisis-<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="not used: see --crisis-model")
    parser.add_argument("--crisis-model", type=Path, help="bundle; default models/crisis")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--data", type=Path, help="CrisisMMD folder for real texts")
    parser.add_argument("--posts", type=int, default=2000, help="posts per number in flight")
    options = parser.parse_args()
    classifier = CrisisClassifier.from_bundle(options.crisis_model or resource_path("models/crisis"))
    sent = posts(options.posts, options.data)
    classifier.classify(sent[:64])
    results: dict[str, Any] = {}
    for in_flight in IN_FLIGHT:
        with CrisisService(classifier, ServiceSettings()) as service:
            results[str(in_flight)] = figures(*run(service, sent, in_flight))
            batches = service.status().batches
            results[str(in_flight)]["posts_per_batch"] = round(len(sent) / batches, 1)
            if in_flight == IN_FLIGHT[-1]:
                results["duplicates"] = figures(*run(service, sent, in_flight))
    for name, entry in results.items():
        print(f"{name:>10} in flight  " + "  ".join(f"{key} {value}" for key, value in entry.items()))
    facts = reports.environment()
    target = reports.new_folder(options.out) / f"crisis-{reports.device_slug(facts)}.json"
    content = {
        "benchmark": "crisis",
        "model": classifier.model,
        "posts": len(sent),
        "source": "CrisisMMD informative dev" if options.data else "made up",
        "seed": SEED,
        "input_sha256": hashlib.sha256("\n".join(post.text for post in sent).encode()).hexdigest(),
        "in_flight": results,
        **facts,
    }
    reports.write_json(target, content)
    print(target)


if __name__ == "__main__":
    main()
