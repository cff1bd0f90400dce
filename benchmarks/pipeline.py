"""Latency of every stage of the pipeline for one bundle, at three input sizes, on synthesised totes."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli import reports
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.session import open_sessions
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline import PerceptionPipeline

SIZES = {"640x512": (512, 640), "1920x1080": (1080, 1920), "2448x2048": (2048, 2448)}
SEED = 20_000
SCENES = 8
PRODUCTS = 1000
MANIFEST = 20


def scenes(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Synthesised totes enlarged to a size; the same on every machine."""
    catalogue = Catalogue(SEED, 60)
    images = [render_scene(catalogue, SEED, i).image for i in range(SCENES)]
    return [np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)) for image in images]


def measure(pipeline: PerceptionPipeline, images: list[NDArray[np.uint8]], runs: int) -> dict[str, Any]:
    """Median and 95th percentile of every stage (ms) over all images and runs, and the spread of the runs."""
    manifest = [f"P{i}" for i in range(MANIFEST)]
    found = [len(pipeline.perceive(image, manifest=manifest)) for image in images]  # also the warm-up
    timings = [
        [pipeline.perceive(image, manifest=manifest).timings_ms for image in images] for _ in range(runs)
    ]
    flat = [timing for run in timings for timing in run]
    stages = {
        stage: {
            "p50": round(float(np.percentile([t[stage] for t in flat], 50)), 3),
            "p95": round(float(np.percentile([t[stage] for t in flat], 95)), 3),
        }
        for stage in flat[0]
    }
    medians = [float(np.median([t["total"] for t in run])) for run in timings]
    return {
        "objects_per_image": float(np.mean(found)),
        "stages_ms": stages,
        "total_ms_median_of_runs": round(float(np.median(medians)), 3),
        "total_ms_by_run": [round(m, 3) for m in medians],
        "images_per_second": round(1000 / float(np.median(medians)), 2),
    }


def main() -> None:
    """Measure and write ``pipeline-<processor>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--runs", type=int, default=5, help="runs over all images")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="input sizes")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    digest = hashlib.sha256()
    results = {}
    with tempfile.TemporaryDirectory() as folder, Gallery.open(Path(folder, "products.gallery")) as gallery:
        pipeline = PerceptionPipeline.from_bundle(options.model)
        identification = pipeline.bundle.manifest.identification
        if identification is not None:
            width = identification.embedding_dim
            gallery.add_many({f"P{i}": rng.normal(size=(4, width)) for i in range(PRODUCTS)})
            sessions = open_sessions(pipeline.bundle)
            pipeline = PerceptionPipeline(pipeline.bundle, sessions, gallery=gallery)
        for name in options.sizes:
            images = scenes(SIZES[name])
            for image in images:
                digest.update(image.tobytes())
            results[name] = measure(pipeline, images, options.runs)
            print(f"{name:12} {results[name]['total_ms_median_of_runs']:9.1f} ms per image")
    facts = reports.environment()
    target = reports.new_folder(options.out) / f"pipeline-{reports.device_slug(facts)}.json"
    reports.write_json(
        target,
        {
            "benchmark": "pipeline",
            "model": reports.model_facts(pipeline.bundle),
            "seed": SEED,
            "scenes": SCENES,
            "runs": options.runs,
            "gallery_products": PRODUCTS,
            "manifest": MANIFEST,
            "input_sha256": digest.hexdigest(),
            "sizes": results,
            **facts,
        },
    )
    print(target)


if __name__ == "__main__":
    main()
