"""`mca bench segmentation` and `pipeline`: synthesised totes through a bundle in every session, beside peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli.bench_cases import SEED, BenchSettings, Outcome, digest, refusals
from mca_perception.cli.bench_measure import interleave_images
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.errors import BundleError
from mca_perception.pipeline import PerceptionPipeline

__all__ = ["bench_pipeline", "bench_segmentation"]

SCENES = 8
SIZE = (512, 640)
INPUT_SIDES = (512, 1024)
"""Sides of the square network inputs that segmentation is also measured at, on images of that size."""
IMAGES_BY_SIDE = 2

RCNN = "torchvision-maskrcnn"
_PIPELINE_PEERS = ("torch-eager",)
_SEGMENTATION_PEERS = ("torch-eager", RCNN)

Pixels = NDArray[np.uint8]
Rows = dict[str, dict[str, float]]


def bench_segmentation(
    model: Path, sessions: list[str], against: list[str], settings: BenchSettings
) -> Outcome:
    """From an image to its overlapping instances: as the bundle is, on 640 x 512; and for larger network inputs.

    For those, the bundle's weights are exported again, see :func:`.resize_bundle`.
    """
    left_out = refusals(sessions, against, _SEGMENTATION_PEERS)
    bundle, scenes = ModelBundle.open(model), _scenes(SIZE)
    cases = _own_size(bundle, scenes, sessions, against, left_out, settings, whole=False)
    with tempfile.TemporaryDirectory() as folder:
        for side in INPUT_SIDES:
            case = f"{side} x {side}, network input too"
            try:
                resized = _resized(bundle, side, Path(folder) / str(side))
            except (BundleError, ModuleNotFoundError) as error:
                left_out[case] = str(error)
                continue
            images = _scenes((side, side))[:IMAGES_BY_SIDE]
            cases[case] = _time(resized, images, sessions, against, left_out, settings, 1, whole=False)
    return Outcome(cases, left_out, digest(scenes), _objects(bundle, scenes))


def bench_pipeline(model: Path, sessions: list[str], against: list[str], settings: BenchSettings) -> Outcome:
    """From an image to segmented and embedded objects at 640 x 512: the bundle in every session."""
    left_out = refusals(sessions, against, _PIPELINE_PEERS)
    bundle, scenes = ModelBundle.open(model), _scenes(SIZE)
    cases = _own_size(bundle, scenes, sessions, against, left_out, settings, whole=True)
    return Outcome(cases, left_out, digest(scenes), _objects(bundle, scenes))


def _scenes(size: tuple[int, int]) -> list[Pixels]:
    """Synthesised totes of one size ``(height, width)``; the same on every machine."""
    catalogue = Catalogue(SEED, 60)
    scenes = (render_scene(catalogue, SEED, number).image for number in range(SCENES))
    return [np.asarray(cv2.resize(scene, size[::-1]), np.uint8) for scene in scenes]


def _objects(bundle: ModelBundle, scenes: Sequence[Pixels]) -> dict[str, float]:
    finder = PerceptionPipeline(bundle, open_sessions(bundle, session="onnxruntime-cpu"))
    found = [len(finder.perceive(scene)) for scene in scenes]
    return {"objects_per_image": round(float(np.mean(found)), 2), "most_objects": max(found)}


def _resized(bundle: ModelBundle, side: int, folder: Path) -> ModelBundle:
    from mca_perception.training.resizing import resize_bundle

    return resize_bundle(bundle, (side, side), folder)


def _own_size(
    bundle: ModelBundle,
    scenes: Sequence[Pixels],
    sessions: list[str],
    against: list[str],
    left_out: dict[str, str],
    settings: BenchSettings,
    *,
    whole: bool,
) -> dict[str, Rows]:
    """One image after the other on all threads; and several at once, which share the threads out."""
    cases = {}
    for at_once in dict.fromkeys((1, settings.at_once)):
        how = f"{at_once} at once" if at_once > 1 else "one by one"
        rows = _time(bundle, scenes, sessions, against, left_out, settings, at_once, whole=whole)
        cases[f"{SIZE[1]} x {SIZE[0]}, {how}"] = rows
    return cases


def _time(
    bundle: ModelBundle,
    images: Sequence[Pixels],
    sessions: list[str],
    against: list[str],
    left_out: dict[str, str],
    settings: BenchSettings,
    at_once: int,
    *,
    whole: bool,
) -> Rows:
    """Figures of all candidates; what cannot run the bundle is added to ``left_out``."""
    threads = max(1, settings.threads // at_once)
    options = SessionOptions(threads=threads, parallel=at_once)
    back_ends = {name: name for name in sessions}
    if "torch-eager" in against:
        back_ends["torch-eager"] = "torch"
    calls: dict[str, Callable[[Pixels], object]] = {}
    for name, back_end in back_ends.items():
        if name in left_out:
            continue
        try:
            opened = open_sessions(bundle, session=back_end, options=options)
            pipeline = PerceptionPipeline(bundle, opened)
        except BundleError as error:
            left_out[name] = str(error)
            continue
        calls[name] = pipeline.perceive if whole else pipeline.candidates
    if RCNN in against and RCNN not in left_out:
        calls[RCNN] = _mask_rcnn(threads, images[0].shape[:2])
    return interleave_images(
        calls, images, settings.runs, at_once=at_once, between=settings.between, meter=settings.meter
    )


def _mask_rcnn(threads: int, size: tuple[int, ...]) -> Callable[[Pixels], object]:
    """Mask R-CNN R50-FPN of torchvision with random weights, told to leave images of this size as they are.

    It finds nothing then, so its mask branch has nothing to do: the quickest that it can be.
    """
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(SEED)
    sides = {"min_size": min(size), "max_size": max(size)}
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sides).eval()

    def call(image: Pixels) -> object:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])

    return call
