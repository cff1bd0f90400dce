"""kill -9 of an index job at random points: the store opens, the job resumes, the final content is the same.

A job indexes pictures with a small deterministic encoder, is killed after a random time, and is started again until it
ends; then the next store is begun. After every kill the store is opened and every row compared with the undisturbed
one. Children are forked, so that a kill costs milliseconds instead of a start of Python.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli import reports
from mca_perception.datasets.images import resize_square
from mca_perception.retrieval.indexing import index_images
from mca_perception.retrieval.sources import FolderSource
from mca_perception.retrieval.store import RetrievalStore

NAME = "retrieval-crashes"
DIMENSION, SIDE = 64, 6
BATCH = 4
BROKEN_EVERY = 17
MODEL = "benchmark"


class Projection:
    """A picture's thumbnail times a fixed random matrix."""

    image_fingerprint = MODEL
    dimension = DIMENSION

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, DIMENSION))

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """See :class:`~mca_perception.retrieval.encoder.ImageEncoder`."""
        flat = np.stack([resize_square(image, SIDE).ravel() for image in images]) / 255 - 0.5
        return np.asarray(flat @ self._matrix, np.float32)


def write_pictures(folder: Path, count: int) -> None:
    """Small random pictures, some of them broken."""
    rng = np.random.default_rng(1)
    for number in range(count):
        path = folder / f"{number:05d}.png"
        if number % BROKEN_EVERY == 0:
            path.write_bytes(b"broken")
        else:
            cv2.imwrite(str(path), rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))


def index(pictures: Path, folder: Path) -> None:
    """Index everything that is missing."""
    with RetrievalStore.write(folder, image_model=MODEL, dimension=DIMENSION, dtype="float16") as store:
        index_images(FolderSource(pictures), store, Projection(), batch=BATCH)


def content(folder: Path) -> tuple[list[str], bytes, list[tuple[str, str]], bool]:
    """Everything that a store holds."""
    with RetrievalStore.open(folder) as store:
        vectors = store.vectors(slice(0, store.count)).tobytes()
        return list(store.image_ids()), vectors, sorted(store.skipped().items()), store.is_finished()


def killed(pictures: Path, folder: Path, after_s: float) -> bool:
    """Run a job in a child and kill it; returns whether it was still running."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            index(pictures, folder)
            status = 0
        finally:
            os._exit(status)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a job failed with exit code {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def main() -> None:
    """Kill so many times and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="not used: the benchmark brings a small encoder")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what else has to be known about this run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    figures: dict[str, Any] = {"kills": 0, "stores": 0, "not_created_yet": 0, "different": 0}
    at: list[int] = []
    rng = random.Random(options.seed)  # noqa: S311  # where to kill, no secret
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures = root / "pictures"
        pictures.mkdir()
        write_pictures(pictures, options.pictures)
        start = time.perf_counter()
        index(pictures, root / "whole")
        duration = time.perf_counter() - start
        ids, vectors, skipped, _ = content(root / "whole")
        row = len(vectors) // len(ids)
        while figures["kills"] < options.kills:
            folder = root / f"store{figures['stores']}"
            while killed(pictures, folder, rng.uniform(0, duration / 3)):
                figures["kills"] += 1
                if not (folder / "store.sqlite").is_file():
                    figures["not_created_yet"] += 1
                    continue
                try:
                    found = content(folder)
                except Exception as error:  # counted: what the benchmark looks for
                    if "no such table" in str(error) or "version None" in str(error):
                        figures["not_created_yet"] += 1
                        continue
                    raise
                at.append(len(found[0]))
                good = found[0] == ids[: len(found[0])] and found[1] == vectors[: row * len(found[0])]
                figures["different"] += not good
            figures["stores"] += 1
            figures["different"] += content(folder) != (ids, vectors, skipped, True)
    report = {
        "benchmark": NAME,
        "note": options.note,
        **reports.environment(),
        **figures,
        "rows_at_the_kill": {
            "least": min(at),
            "median": float(np.median(at)),
            "most": max(at),
            "of": len(ids),
        },
        "seed": options.seed,
    }
    path = options.out / f"{NAME}-{reports.device_slug(report)}.json"
    reports.new_folder(options.out)
    reports.write_json(path, report)
    print(path, figures)
    if figures["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
