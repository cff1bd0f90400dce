"""Kill a process that changes a gallery, again and again at random moments, and look for what it had acknowledged.

A child adds, replaces and removes products, alone and in batches, and says so when a call has returned. It is ended
with SIGKILL, also while it opens the gallery or writes the search matrix. Then the gallery must open, pass SQLite's
integrity check, and hold every acknowledged change; one that was under way may be there or not, but as a whole.

SIGKILL shows what a crash of the program leaves. That a power cut leaves the same rests on SQLite's synchronous=FULL.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.cli import reports
from mca_perception.errors import GalleryError
from mca_perception.identification import gallery as gallery_module
from mca_perception.identification.gallery import Gallery

PRODUCTS = 60
WIDTH = 32
LONGEST_LIFE_S = 0.08
Versions = dict[str, int]
"""Version of every product; 0 when it was removed."""


def embeddings_of(product: str, version: int) -> NDArray[np.float32]:
    """The embeddings ``[1..3, WIDTH]`` of one version of a product."""
    rng = np.random.default_rng((int(product), version))
    rows = rng.normal(size=(1 + version % 3, WIDTH))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def change_for_ever(path: Path, state: Versions, seed: int, pipe: int) -> None:
    """Change products; write each change to the pipe before, and a line that it has been made after."""
    rng = random.Random(seed)  # noqa: S311
    state = dict(state)
    with Gallery.open(path) as gallery:
        for version in range(1, sys.maxsize):
            present = [product for product, known in state.items() if known]
            if present and rng.random() < 0.2:
                change = {rng.choice(present): 0}
            else:
                names = rng.sample(range(PRODUCTS), rng.choice((1, 1, 1, 5, 20)))
                change = {f"{name:05d}": version * 1_000_003 + seed for name in names}
            os.write(pipe, json.dumps(change).encode() + b"\n")
            if 0 in change.values():
                gallery.remove(next(iter(change)))
            else:
                gallery.add_many({product: embeddings_of(product, v) for product, v in change.items()})
            os.write(pipe, b"done\n")
            state |= change


def kill_once(path: Path, state: Versions, seed: int) -> tuple[list[Versions], Versions | None]:
    """Run a child and kill it.

    Returns:
        The acknowledged changes, and one that was under way.
    """
    life = random.Random(f"life {seed}").uniform(0, LONGEST_LIFE_S)  # noqa: S311
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            change_for_ever(path, state, seed, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(life)
    os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as stream:
        lines = stream.read().splitlines(keepends=True)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the child ended by itself; its message is above")
    lines = [line for line in lines if line.endswith(b"\n")]
    changes = [json.loads(line) for line in lines if line != b"done\n"]
    acknowledged = lines.count(b"done\n")
    return changes[:acknowledged], next(iter(changes[acknowledged:]), None)


def differences(gallery: Gallery, state: Versions) -> list[str]:
    """Products of the gallery that are not as the state says."""
    found = set(gallery.products())
    wrong = [product for product in found if not state.get(product)]
    for product, version in state.items():
        if version and (
            product not in found or not same(gallery.embeddings(product), embeddings_of(product, version))
        ):
            wrong.append(product)
    return wrong


def same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether two sets of embeddings agree in number and value."""
    return found.shape == expected.shape and np.allclose(found, expected, atol=1e-6)


def intact(path: Path) -> bool:
    """SQLite's own check of the file."""
    connection = sqlite3.connect(path)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
    finally:
        connection.close()


def run(path: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so many children in turn and count what is wrong after each."""
    gallery_module.CACHED_REFERENCES = 16  # the search matrix is written, and interrupted, too
    state: Versions = {}
    figures = dict.fromkeys(
        ("acknowledged_changes", "under_way_and_kept", "under_way_and_undone", "lost", "unopenable"), 0
    )
    with Gallery.open(path):
        pass  # an empty gallery to start from
    for turn in range(kills):
        acknowledged, under_way = kill_once(path, state, seed + turn)
        for change in acknowledged:
            state |= change
        figures["acknowledged_changes"] += len(acknowledged)
        try:
            with Gallery.open(path, create=False) as gallery:
                wrong = differences(gallery, state)
                if under_way:
                    kept = bool(wrong) and not differences(gallery, state | under_way)
                    figures["under_way_and_kept" if kept else "under_way_and_undone"] += 1
                    if kept:
                        state, wrong = state | under_way, []
                figures["lost"] += len(wrong)
        except GalleryError as error:
            print(f"turn {turn}: {error}")
            figures["unopenable"] += 1
        figures["unopenable"] += not intact(path)
    return {"kills": kills, **figures, "products_at_the_end": sum(map(bool, state.values()))}


def main() -> None:
    """Run, print the figures, and end with 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="not used: the benchmark needs no model")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for a JSON file with the figures")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder) / "crashes.gallery", options.kills, options.seed)
    figures["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(figures))
    if options.out:
        facts = reports.environment()
        facts["versions"]["sqlite"] = sqlite3.sqlite_version
        name = f"gallery-crashes-{reports.device_slug(facts)}.json"
        reports.write_json(reports.new_folder(options.out) / name, {**facts, "figures": figures})
    if figures["lost"] or figures["unopenable"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
