"""Search, size and speed of the product gallery beside plain NumPy and faiss's flat index, in one run.

The embeddings are synthetic: points around random centres, and queries that are disturbed copies of some of them. Real
embeddings are spread differently, so recall has to be measured again on real ones (`mca gallery search --exact`).
Queries go to ours, NumPy and faiss in turn, so that other load on the machine meets all three alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.cli import reports
from mca_perception.identification.gallery import Gallery
from mca_perception.identification.gallery_cache import cache_path

SEED = 20_001
CENTRES = 4000
SPREAD = 0.7
QUERY_NOISE = 0.8
BATCH = 2000
SINGLE_ADDS = 50
MANIFEST = 20
K = 10
MEGABYTE = 2**20
Search = Callable[[NDArray[np.float32]], list[int]]


def normalise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def references(count: int, width: int) -> NDArray[np.float32]:
    """Clustered embeddings ``[count, width]``."""
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((CENTRES, width), np.float32)
    vectors = np.empty((count, width), np.float32)
    for start in range(0, count, BATCH):
        part = vectors[start : start + BATCH]
        part[:] = centres[rng.integers(0, CENTRES, len(part))]
        part += SPREAD * rng.standard_normal(part.shape, np.float32)
        normalise(part)
    return vectors


def disturbed(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Queries ``[count, D]`` near some of the references."""
    rng = np.random.default_rng(SEED + 1)
    rows = rng.choice(len(vectors), count, replace=False)
    noise = rng.standard_normal((count, vectors.shape[1]), np.float32)
    return normalise(vectors[rows] + noise * np.float32(QUERY_NOISE / vectors.shape[1] ** 0.5))


def name(row: int) -> str:
    """Id of a product."""
    return f"B{row:09d}"


def fill(folder: Path, count: int, width: int, queries: int, figures: dict[str, Any]) -> None:
    """Make the embeddings and the gallery; runs in a process of its own, so that its memory is not counted."""
    vectors = references(count, width)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", disturbed(vectors, queries))
    with Gallery.open(folder / "bench.gallery", model="benchmark") as gallery:
        start = time.perf_counter()
        for first in range(0, count, BATCH):
            gallery.add_many({name(row): vectors[row] for row in range(first, min(first + BATCH, count))})
        figures["add_batches_per_s"] = round(count / (time.perf_counter() - start))
        singles = []
        for row in range(SINGLE_ADDS):
            start = time.perf_counter()
            gallery.add(name(row), vectors[row])
            singles.append(time.perf_counter() - start)
        figures["add_single_ms"] = percentiles(singles)
    start = time.perf_counter()
    with Gallery.open(folder / "bench.gallery"):
        figures["open_and_write_search_matrix_s"] = round(time.perf_counter() - start, 2)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1000, 3) for p in (50, 99)}


def resident() -> dict[str, float]:
    """Memory of this process in MiB: its own, and mapped files' pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"own": round(sizes["RssAnon"], 1), "mapped": round(sizes["RssFile"], 1)}


def searches(gallery: Gallery, vectors: NDArray[np.float32]) -> tuple[dict[str, Search], dict[str, Any]]:
    """Ours and its peers, with the memory that each adds."""
    memory: dict[str, Any] = {}

    def ours(query: NDArray[np.float32]) -> list[int]:
        return [int(product[1:]) for product, _ in gallery.search(query, K)[0]]

    def plain(query: NDArray[np.float32]) -> list[int]:
        similarities = vectors @ query
        best = np.argpartition(similarities, -K)[-K:]
        return [int(row) for row in best[np.argsort(-similarities[best])]]

    found: dict[str, Search] = {"ours": ours, "numpy": plain}
    memory["numpy"] = {"own": round(vectors.nbytes / MEGABYTE, 1), "mapped": 0.0}
    try:
        import faiss
    except ModuleNotFoundError:
        print("faiss is not installed and left out")
        return found, memory
    before = resident()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    memory["faiss"] = {key: round(value - before[key], 1) for key, value in resident().items()}

    def flat(query: NDArray[np.float32]) -> list[int]:
        return [int(row) for row in index.search(query[None], K)[1][0]]

    return {**found, "faiss": flat}, memory


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Open the gallery and compare its search with the peers'."""
    figures: dict[str, Any] = {}
    path = folder / "bench.gallery"
    before = resident()
    start = time.perf_counter()
    gallery = Gallery.open(path, create=False)
    figures["open_s"] = round(time.perf_counter() - start, 3)
    figures["disk_MiB"] = {
        "gallery": round(path.stat().st_size / MEGABYTE, 1),
        "search_matrix": round(cache_path(path).stat().st_size / MEGABYTE, 1),
    }
    opened = {key: round(value - before[key], 1) for key, value in resident().items()}
    asked = np.load(folder / "queries.npy")
    start = time.perf_counter()
    gallery.search(asked[0], K)
    figures["first_search_ms"] = round((time.perf_counter() - start) * 1000, 1)
    for query in asked:
        gallery.search(query, K)
    figures["container_search_ms"] = container_search(gallery, asked, count)
    searched = {key: round(value - before[key], 1) for key, value in resident().items()}
    methods, memory = searches(gallery, np.load(folder / "vectors.npy"))
    figures["memory_MiB"] = {"ours, opened": opened, "ours, after the searches": searched, **memory}
    answers: dict[str, list[list[int]]] = {method: [] for method in methods}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for query in asked:
        for method, search in methods.items():
            start = time.perf_counter()
            answers[method].append(search(query))
            times[method].append(time.perf_counter() - start)
    figures["search_ms"] = {method: percentiles(times[method]) for method in methods}
    for k in (1, K):
        shared = [
            len({*a[:k]} & {*b[:k]}) / k for a, b in zip(answers["ours"], answers["numpy"], strict=True)
        ]
        figures[f"recall@{k}_against_exact"] = round(float(np.mean(shared)), 5)
    figures["median_share_of_numpy"] = round(
        figures["search_ms"]["ours"]["p50"] / figures["search_ms"]["numpy"]["p50"], 4
    )
    gallery.close()
    return figures


def container_search(gallery: Gallery, asked: NDArray[np.float32], count: int) -> dict[str, float]:
    """Milliseconds of an exact search in a manifest, another one for each query."""
    rng = np.random.default_rng(SEED + 2)
    times = []
    for query in asked:
        manifest = [name(row) for row in rng.integers(0, count, MANIFEST)]
        start = time.perf_counter()
        gallery.search(query, 3, manifest)
        times.append(time.perf_counter() - start)
    return percentiles(times)


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="not used: the benchmark needs no model")
    parser.add_argument("--products", type=int, default=190_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--note", default="", help="what else has to be known about this run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name_of_folder, multiprocessing.Manager() as manager:
        folder, filled = Path(name_of_folder), manager.dict()
        child = multiprocessing.get_context("spawn").Process(
            target=fill, args=(folder, options.products, options.width, options.queries, filled)
        )
        child.start()
        child.join()
        figures = {**filled, **measure(folder, options.products)}
    facts = reports.environment(packages=("faiss-cpu",))
    if options.note:
        facts["note"] = options.note
    facts["data"] = {
        "kind": "synthetic: normal around random centres",
        "products": options.products,
        "references_per_product": 1,
        "width": options.width,
        "queries": options.queries,
        "centres": CENTRES,
        "spread": SPREAD,
        "query_noise": QUERY_NOISE,
        "seed": SEED,
        "manifest": MANIFEST,
        "k": K,
    }
    path = reports.new_folder(options.out) / f"gallery-{reports.device_slug(facts)}.json"
    reports.write_json(path, {**facts, "figures": figures})
    for key, value in figures.items():
        print(f"{key:32}{value}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
