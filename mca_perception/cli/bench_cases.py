"""What `mca bench backbone`, `segmentation` and `pipeline` run, ours and the peers in turn."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli.bench_measure import interleave
from mca_perception.cli.bench_peers import BUILDERS, build_ours, features
from mca_perception.cli.bench_peers import why_not as why_no_peer
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.deploy.sessions import BACKENDS, why_not
from mca_perception.deploy.sessions.base import Session
from mca_perception.errors import BundleError, McaError
from mca_perception.pipeline import PerceptionPipeline

if TYPE_CHECKING:
    import torch

__all__ = ["Outcome", "bench_backbone", "bench_pipeline", "bench_segmentation"]

SEED = 20_000
SCENES = 4
BACKBONE_SIDE = 224
BATCHES = (1, 8)
SIZES = ((512, 640),)
BASE_GFLOP = 35.1
"""Arithmetic of one pass of base at 224 px: 12 layers, 197 tokens, width 768; a product counts two."""

_BACKBONE_PEERS = ("torch-eager", "torch-compile", "timm", "torchscale")
_PIPELINE_PEERS = ("torch-eager",)
_SEGMENTATION_PEERS = ("torch-eager", "torchvision-maskrcnn")


@dataclass(frozen=True)
class Outcome:
    """Figures by case and candidate, what was left out and why, and a hash of the input."""

    cases: dict[str, dict[str, dict[str, float]]]
    left_out: dict[str, str]
    input_sha256: str


def bench_backbone(sessions: list[str], against: list[str], *, runs: int, threads: int) -> Outcome:
    """Base at 224 px with random weights: our graph in every session, our module and the peers in torch.

    Raises:
        McaError: torch is not installed, as our graph is exported from it, or a peer is unknown.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    left_out = _refusals(sessions, against, _BACKBONE_PEERS)
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(max(BATCHES), 3, BACKBONE_SIDE, BACKBONE_SIDE)).astype(np.float32)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = build_ours(BACKBONE_SIDE).eval()
        calls: dict[str, Callable[[NDArray[np.float32]], object]] = {}
        graph = _export(ours, folder) if set(sessions) - set(left_out) else None
        for name in sessions:
            if name not in left_out and graph is not None:
                session = _open_file(graph, name, threads)
                calls[name] = partial(_run_images, session)
        for name in against:
            if name not in left_out:
                calls[name] = _torch_call(name, ours)
        cases = {
            f"base {BACKBONE_SIDE} px, batch {batch}": interleave(
                {name: partial(call, images[:batch]) for name, call in calls.items()},
                runs,
                images=batch,
                gflop=BASE_GFLOP * batch,
            )
            for batch in BATCHES
        }
    return Outcome(cases, left_out, _digest([images]))


def bench_segmentation(
    model: Path, sessions: list[str], against: list[str], *, runs: int, threads: int
) -> Outcome:
    """From an image to its overlapping instances at 640 x 512: the bundle in every session, and the peers."""
    left_out = _refusals(sessions, against, _SEGMENTATION_PEERS)
    return _images(model, sessions, against, left_out, runs, threads, whole=False)


def bench_pipeline(
    model: Path, sessions: list[str], against: list[str], *, runs: int, threads: int
) -> Outcome:
    """From an image to segmented and embedded objects at 640 x 512: the bundle in every session."""
    left_out = _refusals(sessions, against, _PIPELINE_PEERS)
    return _images(model, sessions, against, left_out, runs, threads, whole=True)


def _images(
    model: Path,
    sessions: list[str],
    against: list[str],
    left_out: dict[str, str],
    runs: int,
    threads: int,
    *,
    whole: bool,
) -> Outcome:
    bundle = ModelBundle.open(model)
    catalogue = Catalogue(SEED, 60)
    scenes = [render_scene(catalogue, SEED, i).image for i in range(SCENES)]
    cases, seen = {}, []
    calls: dict[str, Callable[[NDArray[np.uint8]], object]] = {}
    names = {
        **{name: name for name in sessions},
        **({"torch-eager": "torch"} if "torch-eager" in against else {}),
    }
    for name, back_end in names.items():
        if name in left_out:
            continue
        try:
            opened = open_sessions(bundle, session=back_end, options=SessionOptions(threads=threads))
        except BundleError as error:
            left_out[name] = str(error)
            continue
        pipeline = PerceptionPipeline(bundle, opened)
        calls[name] = pipeline.perceive if whole else pipeline.candidates
    if "torchvision-maskrcnn" in against and "torchvision-maskrcnn" not in left_out:
        calls["torchvision-maskrcnn"] = _mask_rcnn(threads)
    for height, width in SIZES:
        images = [np.asarray(cv2.resize(image, (width, height)), np.uint8) for image in scenes]
        seen += images
        each = {name: partial(_call_on_all, call, images) for name, call in calls.items()}
        measured = interleave(each, runs, images=len(images))
        cases[f"{width} x {height}"] = {
            name: _per_image(values, len(images)) for name, values in measured.items()
        }
    return Outcome(cases, left_out, _digest(seen))


def _call_on_all(
    call: Callable[[NDArray[np.uint8]], object], images: list[NDArray[np.uint8]]
) -> list[object]:
    return [call(image) for image in images]


def _per_image(values: Mapping[str, float], count: int) -> dict[str, float]:
    """Times of one image; a call worked on several, so percentiles are those of means over them."""
    timed = {"p50_ms", "p95_ms", "p99_ms", "fastest_ms", "processor_ms"}
    return {name: round(value / count, 3) if name in timed else value for name, value in values.items()}


def _refusals(sessions: list[str], against: list[str], peers: tuple[str, ...]) -> dict[str, str]:
    """Reasons by candidate that cannot run here.

    Raises:
        McaError: a candidate is unknown.
    """
    for name in sessions:
        if name not in BACKENDS:
            raise McaError(f"there is no session {name!r}; choose from {', '.join(BACKENDS)}")
    for name in against:
        if name not in peers:
            raise McaError(f"there is no peer {name!r} for this benchmark; choose from {', '.join(peers)}")
    reasons = {name: why_not(name) for name in sessions}
    reasons |= {name: why_no_peer(name) for name in against}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _export(module: Any, folder: Path) -> Path:
    import torch
    from torch.export import Dim

    from mca_perception.deploy.export import export_graph
    from mca_perception.training.graphs import Features

    path = folder / "backbone.onnx"
    example = torch.zeros(2, 3, BACKBONE_SIDE, BACKBONE_SIDE)
    batch = {0: Dim("N", min=1, max=64)}
    export_graph(Features(module), {"images": example}, ["features"], path, dynamic_shapes={"images": batch})
    return path


def _open_file(path: Path, name: str, threads: int) -> Session:
    """A session on a graph that belongs to no bundle.

    Raises:
        McaError: the back end only runs bundles.
    """
    from mca_perception.deploy.sessions.onnx_runtime import CPU, CUDA, OnnxSession

    if name == "openvino":
        from mca_perception.deploy.sessions.open_vino import OpenVinoSession

        return OpenVinoSession(path, intra_op_threads=threads)
    providers = {"onnxruntime-cpu": [CPU], "onnxruntime-cuda": [CUDA, CPU]}.get(name)
    if providers is None:
        raise McaError(f"session {name!r} runs bundles only; leave it out here")
    return OnnxSession(path, providers=providers, intra_op_threads=threads)


def _run_images(session: Session, batch: NDArray[np.float32]) -> object:
    return session.run({"images": batch})


def _torch_call(name: str, ours: Any) -> Callable[[NDArray[np.float32]], object]:
    import torch

    model = BUILDERS[name](BACKBONE_SIDE).eval() if name in BUILDERS else ours

    def run(batch: torch.Tensor) -> torch.Tensor:
        return features(model, batch)

    forward = torch.compile(run, dynamic=False) if name == "torch-compile" else run

    def call(batch: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return forward(torch.from_numpy(batch)).numpy()

    return call


def _mask_rcnn(threads: int) -> Callable[[NDArray[np.uint8]], object]:
    """Mask R-CNN R50-FPN of torchvision, which scales images to 800 px by itself unless told their size."""
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=512, max_size=640).eval()

    def call(image: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            return model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])

    return call


def _digest(arrays: list[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
