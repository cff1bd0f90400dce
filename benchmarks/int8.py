"""int8 against float32 on this machine: latency of graphs and pipeline, and task metrics where data is given.

Without data, ranges are found on synthesised totes, which is enough to time with. Candidates take turns, so that all
see the same state of the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli import reports
from mca_perception.cli.bench_measure import interleave
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.deploy.sessions import why_not
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.precision_export import PrecisionOptions, export_precision

SEED = 20_000
SCENES = 8
CROPS = 8
BACK_ENDS = ("onnxruntime-cpu", "openvino")


def scenes() -> list[NDArray[np.uint8]]:
    """Synthesised totes; the same on every machine."""
    catalogue = Catalogue(SEED, 60)
    return [render_scene(catalogue, SEED, i).image for i in range(SCENES)]


def convert(bundle: ModelBundle, folder: Path, options: argparse.Namespace) -> tuple[ModelBundle, Any]:
    """The bundle in int8, and what the gate found on the evaluation data."""
    sources = options.calibration
    if not sources:
        images = folder / "scenes"
        images.mkdir()
        for number, image in enumerate(scenes()):
            cv2.imwrite(str(images / f"{number}.png"), image[..., ::-1])
        sources, options.calibration_images = [images], SCENES
    settings = PrecisionOptions(
        "int8",
        calibration=sources,
        calibration_images=options.calibration_images,
        keep=options.keep,
        evaluation=options.evaluate,
        evaluation_limit=options.limit,
        allow_regression=True,  # figures are wanted, whichever they are
    )
    with reports.progress_bar() as progress:
        return export_precision(bundle, folder / "int8", settings, progress=progress)


def candidates(bundles: Mapping[str, ModelBundle], threads: int) -> Iterator[tuple[str, PerceptionPipeline]]:
    """Every bundle in every back end that works here."""
    for back_end in BACK_ENDS:
        reason = why_not(back_end)
        if reason:
            print(f"{back_end} is left out: {reason}")
            continue
        for name, bundle in bundles.items():
            sessions = open_sessions(bundle, session=back_end, options=SessionOptions(threads=threads))
            yield f"{back_end} {name}", PerceptionPipeline(bundle, sessions)


def time_all(pipelines: Mapping[str, PerceptionPipeline], runs: int) -> dict[str, Any]:
    """Backbone on a scene and on a batch of crops, segmentation head, and the pipeline end to end."""
    rng, (first, *_) = np.random.default_rng(SEED), pipelines.values()
    height, width = first.segmentation_settings.input_size
    side = first.identification_settings.crop_size
    scene = rng.normal(size=(1, 3, height, width)).astype(np.float32)
    crops = rng.normal(size=(CROPS, 3, side, side)).astype(np.float32)
    images = scenes()

    def backbone(pipeline: PerceptionPipeline, batch: NDArray[np.float32]) -> Callable[[], object]:
        session = pipeline._sessions["backbone"]
        return lambda: session.run({"images": batch})

    def perceive(pipeline: PerceptionPipeline) -> Callable[[], object]:
        return lambda: [pipeline.perceive(image) for image in images]

    each = pipelines.items()
    whole = interleave({name: perceive(p) for name, p in each}, max(1, runs // 3), images=len(images))
    return {
        f"backbone {width}x{height}, batch 1": interleave({n: backbone(p, scene) for n, p in each}, runs),
        f"backbone {side}x{side}, batch {CROPS}": interleave({n: backbone(p, crops) for n, p in each}, runs),
        f"pipeline, {len(images)} images": whole,
    }


def main() -> None:
    """Convert, judge, time, and write ``int8-<processor>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--runs", type=int, default=15, help="turns of every candidate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration", type=Path, nargs="*", default=[], help="folders or COCO files")
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--evaluate", type=Path, nargs="*", default=[], help="totes and picks to judge on")
    parser.add_argument("--limit", type=int, help="images or picks of each")
    parser.add_argument("--keep", nargs="*", default=[], help="graphs that stay in float32")
    options = parser.parse_args()
    bundle = ModelBundle.open(options.model)
    with tempfile.TemporaryDirectory() as folder:
        converted, gate = convert(bundle, Path(folder), options)
        sizes = {
            name: {
                "float32": bundle.path_of(name).stat().st_size,
                "int8": converted.path_of(name).stat().st_size,
            }
            for name in bundle.manifest.graphs
        }
        pipelines = dict(candidates({"float32": bundle, "int8": converted}, options.threads))
        timings = time_all(pipelines, options.runs)
    if gate is not None:
        print(gate)
    for case, figures in timings.items():
        for name, values in figures.items():
            print(
                f"{case:28} {name:26} {values['p50_ms']:9.2f} ms  (fastest {values['fastest_ms']:.2f}, "
                f"processor {values['processor_ms']:.2f})"
            )
    facts = reports.environment(packages=("openvino",))
    target = reports.new_folder(options.out) / f"int8-{reports.device_slug(facts)}.json"
    reports.write_json(
        target,
        {
            "benchmark": "int8",
            "model": reports.model_facts(bundle),
            "settings": converted.manifest.precision.settings if converted.manifest.precision else {},
            "kept": options.keep,
            "calibration": [path.name for path in options.calibration] or f"{SCENES} synthesised totes",
            "calibration_images": options.calibration_images,
            "accuracy": gate.to_manifest() if gate else None,
            "graph_bytes": sizes,
            "seed": SEED,
            "threads": options.threads,
            "runs": options.runs,
            "milliseconds": timings,
            **facts,
        },
    )
    print(target)


if __name__ == "__main__":
    main()
