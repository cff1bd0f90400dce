"""What defects add to a frame: the pipeline with and without its defect head, in turns, on synthesised totes.

Needs a bundle with a defect head beside identification; without one the script says so and measures nothing. Times are
this process' processor time, so that other programs on the machine hardly count.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.cli import reports
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.pipeline import PerceptionPipeline

SEED = 20_000
SCENES = 8


def cpu_ms(pipeline: PerceptionPipeline, image: NDArray[np.uint8], inspects: bool) -> float:
    """Processor time of one frame in milliseconds."""
    pipeline.inspects = inspects
    started = process_time()
    pipeline.perceive(image)
    return (process_time() - started) * 1000


def measure(pipeline: PerceptionPipeline, images: list[NDArray[np.uint8]], runs: int) -> dict[str, Any]:
    """Median processor time with and without defects, and what they add, in milliseconds and per cent."""
    pipeline.inspects = True
    objects = [len(pipeline.perceive(image)) for image in images]  # also the warm-up
    stages = [pipeline.perceive(image).timings_ms for image in images]
    pairs = np.array(
        [
            [cpu_ms(pipeline, image, inspects=False), cpu_ms(pipeline, image, inspects=True)]
            for _ in range(runs)
            for image in images
        ]
    )
    without, with_defects = np.median(pairs, axis=0)
    added = float(np.median(pairs[:, 1] - pairs[:, 0]))
    head = float(np.median([stage["defects"] for stage in stages]))
    return {
        "objects_per_image": float(np.mean(objects)),
        "without_cpu_ms": round(float(without), 3),
        "with_cpu_ms": round(float(with_defects), 3),
        "added_cpu_ms": round(added, 3),
        "added_percent": round(100 * added / float(without), 3),
        "defects_stage_ms": round(head, 3),
    }


def main() -> None:
    """Measure and write ``defects-<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--runs", type=int, default=10, help="runs over all images")
    options = parser.parse_args()
    bundle = ModelBundle.open(options.model)
    if bundle.manifest.defects is None:
        print(f"{options.model} has no defect head: nothing measured")
        return
    catalogue = Catalogue(SEED, 60)
    images = [render_scene(catalogue, SEED, i).image for i in range(SCENES)]
    pipeline = PerceptionPipeline.from_bundle(options.model)
    results = measure(pipeline, images, options.runs)
    print("  ".join(f"{name} {value}" for name, value in results.items()))
    facts = reports.environment()
    target = reports.new_folder(options.out) / f"defects-{reports.device_slug(facts)}.json"
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images))
    reports.write_json(
        target,
        {
            "benchmark": "defects",
            "model": reports.model_facts(bundle),
            "seed": SEED,
            "runs": options.runs,
            "input_sha256": digest.hexdigest(),
            **results,
            **facts,
        },
    )
    print(target)


if __name__ == "__main__":
    main()
