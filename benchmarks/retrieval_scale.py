"""A large pool of vectors: build, memory, disk, latency and recall of every way to search it, in one table.

Vectors are synthetic: clusters around random centres, queries near some of them; real ones are spread differently, so
recall has to be measured again on real ones. Every method runs in a process of its own, so that its memory is its own;
of a memory-mapped store the mapped pages are given apart, as the system may take them back. The entity index holds
centres as entities; a query names some of them. A flat scan's cost is a straight line in the number of rows: from the
pools measured it is extrapolated to AToMiC's, beside the thesis' 364 ms per query on the large one. Rows are kept in
`--work` as they come: run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.kept_results import kept

from mca_perception.cli import reports
from mca_perception.retrieval.entity_index import EntityIndex
from mca_perception.retrieval.exact_search import score_rows
from mca_perception.retrieval.search import open_searcher
from mca_perception.retrieval.store import ImageRecord, RetrievalStore

NAME = "retrieval-scale"
SEED = 30_001
CENTRES = 5000
SPREAD, QUERY_NOISE = 1.2, 0.8
ROWS_AT_ONCE = 10_000
K = 100
PER_ENTITY = 10_000
ENTITIES, ENTITIES_PER_QUERY = 60, 5
WARM_UP = 3
POOLS = {"AToMiC base": 3_410_919, "AToMiC large": 11_019_202}
THESIS_MS = {"AToMiC base, frozen, cached scan": 363.6, "AToMiC large, CFIR": 364.1}
MODEL = "benchmark"
MEGABYTE = 2**20


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, in place."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def centres(width: int) -> NDArray[np.float32]:
    """Cluster centres, which are the entities too."""
    return unit(np.random.default_rng(SEED).standard_normal((CENTRES, width), np.float32))


def near(width: int, count: int, noise: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors near centres, and the centres' numbers."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, CENTRES, count)
    rows = centres(width)[chosen]
    rows += rng.standard_normal(rows.shape, np.float32) * np.float32(noise / width**0.5)
    return unit(rows), chosen


class Entities:
    """Entity ``eI`` is centre I."""

    name = "benchmark"
    image_fingerprint = text_fingerprint = MODEL

    def __init__(self, width: int) -> None:
        self._centres = centres(width)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :class:`~mca_perception.retrieval.encoder.TextEncoder`."""
        return self._centres[[int(text[1:]) for text in texts]]


def fill(folder: Path, images: int, width: int, dtype: str) -> dict[str, Any]:
    """Write a store, or take the one that is there."""
    facts = folder.with_suffix(".json")
    if facts.is_file():
        return dict(json.loads(facts.read_text()))
    start = time.perf_counter()
    with RetrievalStore.write(folder, image_model=MODEL, dimension=width, dtype=dtype) as store:
        for first in range(store.count, images, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, images - first)
            rows, _ = near(width, count, SPREAD, SEED + 1 + first)
            store.append([ImageRecord(f"i{first + i}") for i in range(count)], rows)
    size = sum(path.stat().st_size for path in folder.iterdir())
    found = {"write_s": round(time.perf_counter() - start, 1), "disk_MiB": round(size / MEGABYTE, 1)}
    facts.write_text(json.dumps(found))
    return found


def resident() -> dict[str, float]:
    """Memory of this process in MiB: its own, and mapped files' pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"own": sizes["RssAnon"], "mapped": sizes["RssFile"]}


def timed(search: Any, queries: NDArray[np.float32]) -> tuple[list[NDArray[np.int64]], dict[str, Any]]:
    """Answers, and wall and processor time of single queries after a few to warm up."""
    for query in queries[:WARM_UP]:
        search(query[None])
    wall, processor, answers = [], [], []
    for query in queries:
        start, used = time.perf_counter(), time.process_time()
        (hits,) = search(query[None])
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        answers.append(hits.rows)
    return answers, {
        **{f"p{p}_ms": round(float(np.percentile(wall, p)) * 1000, 3) for p in (50, 99)},
        "p50_processor_ms": round(float(np.percentile(processor, 50)) * 1000, 3),
    }


def recall(found: list[NDArray[np.int64]], exact: list[NDArray[np.int64]], k: int) -> float:
    """Mean share of the exact best ``k`` that were found."""
    shares = [len({*a[:k].tolist()} & {*b[:k].tolist()}) / k for a, b in zip(found, exact, strict=True)]
    return round(float(np.mean(shares)), 4)


def scan(pipe: Any, folder: Path, back_end: str, queries: NDArray[np.float32]) -> None:
    """One back end on one store; runs in a process of its own."""
    before = resident()
    with RetrievalStore.open(folder) as store:
        start, used = time.perf_counter(), time.process_time()
        searcher = open_searcher(store, back_end)
        build, building = time.perf_counter() - start, time.process_time() - used
        answers, times = timed(lambda query: searcher.search(query, K), queries)
        memory = {key: round(value - before[key], 1) for key, value in resident().items()}
    facts = {"build_s": round(build, 1), "build_processor_s": round(building, 1), "memory_MiB": memory}
    pipe.send((answers, {**facts, **times}))


def filtered(pipe: Any, folder: Path, queries: NDArray[np.float32], names: list[list[str]]) -> None:
    """The entity index in front of an exact search; runs in a process of its own."""
    before = resident()
    with RetrievalStore.open(folder) as store:
        index = EntityIndex(store)
        asked = iter([*names[:WARM_UP], *names])
        counts = []

        def search(query: NDArray[np.float32]) -> Any:
            rows = index.lookup(next(asked)).rows
            counts.append(len(rows))
            return score_rows(store, query, K, rows=rows)

        answers, times = timed(search, queries)
        memory = {key: round(value - before[key], 1) for key, value in resident().items()}
    bound = ENTITIES_PER_QUERY * PER_ENTITY
    facts = {"candidates_mean": float(np.mean(counts)), "candidates_most": max(counts), "bound": bound}
    pipe.send((answers, {"memory_MiB": memory, **times, **facts}))


def apart(work: Any, *arguments: Any) -> Any:
    """Run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(send, *arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError as error:
        raise SystemExit(f"{work.__name__} {arguments[1:2]} failed; see above") from error
    finally:
        process.join()


class Table:
    """All methods on all pools; rows are kept in the work folder as they come.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.rows: dict[str, Any] = {}
        self._exact: dict[int, list[NDArray[np.int64]]] = {}
        width = options.width
        rng = np.random.default_rng(SEED + 7)
        self._pool = rng.choice(CENTRES, ENTITIES, replace=False)
        noisy, near_centres = near(width, options.queries, QUERY_NOISE, SEED)
        # Queries are near an entity of the index, so that a filter has something to find.
        named = self._pool[np.arange(len(noisy)) % ENTITIES]
        self._queries = unit(centres(width)[named] + (noisy - centres(width)[near_centres]))
        self._names = [
            [f"e{own}", *(f"e{c}" for c in rng.choice(self._pool, ENTITIES_PER_QUERY - 1, replace=False))]
            for own in named
        ]

    def fill(self) -> dict[str, Any]:
        """Measure what is missing."""
        images, graph = self._options.images, self._options.graph_images
        for dtype in ("float32", "float16", "int8"):
            self._scan("exact", dtype, images)
        for back_end in ("faiss-flat", "faiss-float16", "faiss-int8", "faiss-ivf-int8"):
            self._scan(back_end, "float32", images)
        for count in (images // 4, images // 2, images):
            self._row(f"entities, {count}", partial(self._entities, count))
        for back_end in ("faiss-hnsw", "faiss-hnsw-int8"):
            self._scan(back_end, "float32", self._options.small_graph_images)
        self._scan("qdrant", "float32", self._options.database_images)
        if graph:
            self._scan("faiss-hnsw-int8", "float32", graph)
        return self.rows

    def _row(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        file = "".join(c if c.isalnum() else "-" for c in name)
        self.rows[name] = kept(self._options.work / f"row-{file}.json", make)

    def _store(self, dtype: str, count: int) -> Path:
        folder = Path(self._options.work) / f"{dtype}-{count}"
        self.rows[f"store {dtype}, {count}"] = fill(folder, count, self._options.width, dtype)
        return folder

    def _scan(self, back_end: str, dtype: str, count: int) -> None:
        folder = self._store(dtype, count)

        def make() -> dict[str, Any]:
            found, facts = apart(scan, folder, back_end, self._queries)
            return {**facts, **self._recall(found, count)}

        self._row(f"{back_end} {dtype}, {count}", make)

    def _entities(self, count: int) -> dict[str, Any]:
        folder = self._store("float32", count)
        start = time.perf_counter()
        with RetrievalStore.write(folder, image_model=MODEL, dimension=self._options.width) as store:
            names = [f"e{c}" for c in self._pool]
            EntityIndex(store).add(names, Entities(self._options.width), images_per_entity=PER_ENTITY)
        build = round(time.perf_counter() - start, 1)
        found, facts = apart(filtered, folder, self._queries, self._names)
        return {"build_s": build, **facts, **self._recall(found, count)}

    def _recall(self, found: list[NDArray[np.int64]], count: int) -> dict[str, float]:
        if count not in self._exact:
            self._exact[count], _ = apart(scan, self._store("float32", count), "exact", self._queries)
        return {f"recall@{k}": recall(found, self._exact[count], k) for k in (10, K)}


def extrapolated(rows: dict[str, Any], images: int) -> dict[str, dict[str, float]]:
    """Processor milliseconds per query of the scans for larger pools, as a straight line through the origin."""
    scans = {
        name: facts["p50_processor_ms"]
        for name, facts in rows.items()
        if name.endswith(f", {images}") and "p50_processor_ms" in facts and "ivf" not in name
    }
    return {
        pool: {
            name: round(found * (1 if name.startswith("entities") else size / images), 1)
            for name, found in scans.items()
            if "hnsw" not in name
        }
        for pool, size in POOLS.items()
    }


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder for the stores; taken again if there")
    parser.add_argument("--model", help="not used: the vectors are made up")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument(
        "--small-graph-images", type=int, default=50_000, help="pool of HNSW, which takes long to build"
    )
    parser.add_argument(
        "--graph-images",
        type=int,
        default=0,
        help="pool of HNSW in int8 as well: a million takes half an hour of processor time; a build that was stopped "
        "goes on, and its time is then that of the last part",
    )
    parser.add_argument("--database-images", type=int, default=20_000, help="pool of Qdrant's embedded mode")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--note", default="", help="what else has to be known about this run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.work is None:
        print(f"{NAME} takes 10 GB of disk and is left out: give --work to run it (see benchmarks/README.md)")
        return
    reports.new_folder(options.work)
    rows = Table(options).fill()
    report = {
        "benchmark": NAME,
        "note": options.note,
        **reports.environment(("faiss-cpu", "qdrant-client")),
        "seed": SEED,
        "images": options.images,
        "width": options.width,
        "queries": options.queries,
        "k": K,
        "rows": rows,
        "extrapolated_processor_ms": extrapolated(rows, options.images),
        "thesis_ms": THESIS_MS,
    }
    path = options.out / f"{NAME}-{reports.device_slug(report)}.json"
    reports.new_folder(options.out)
    reports.write_json(path, report)
    print(path)
    for name, facts in rows.items():
        print(f"{name:32}", facts)


if __name__ == "__main__":
    main()
