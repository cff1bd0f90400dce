"""What `mca bench backbone`, `segmentation` and `pipeline` run, ours and the peers in turn."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.cli.bench_measure import interleave, interleave_images, nothing
from mca_perception.cli.bench_peers import BUILDERS, build_ours, features
from mca_perception.cli.bench_peers import why_not as why_no_peer
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.manifest import GraphSpec
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.deploy.sessions import BACKENDS, why_not
from mca_perception.deploy.sessions.base import Session
from mca_perception.errors import BundleError, McaError
from mca_perception.pipeline import PerceptionPipeline

if TYPE_CHECKING:
    import torch

__all__ = ["BenchSettings", "Outcome", "bench_backbone", "bench_pipeline", "bench_segmentation"]

SEED = 20_000
SCENES = 8
BACKBONE_SIDE = 224
BATCHES = (1, 8)
SIZES = ((512, 640),)
BASE_GFLOP = 35.1
"""Arithmetic of one pass of base at 224 px: 12 layers, 197 tokens, width 768; a product counts two."""

_BACKBONE_PEERS = ("torch-eager", "torch-compile", "timm", "torchscale")
_PIPELINE_PEERS = ("torch-eager",)
_SEGMENTATION_PEERS = ("torch-eager", "torchvision-maskrcnn")


@dataclass(frozen=True)
class BenchSettings:
    """How a benchmark is run.

    Attributes:
        runs: turns of every candidate.
        threads: of every candidate.
        at_once: images that are worked on at the same time in a second pass; 1 leaves it out.
        between: called before every round.
    """

    runs: int
    threads: int
    at_once: int = 1
    between: Callable[[], None] = nothing


@dataclass(frozen=True)
class Outcome:
    """Figures by case and candidate, what was left out and why, a hash of the input, and what else is to be known."""

    cases: dict[str, dict[str, dict[str, float]]]
    left_out: dict[str, str]
    input_sha256: str
    facts: dict[str, float] = field(default_factory=dict)


def bench_backbone(sessions: list[str], against: list[str], settings: BenchSettings) -> Outcome:
    """Base at 224 px with random weights: our graph in every session, our module and the peers in torch.

    The session ``torch`` is our compiled one, for every batch size anew.

    Raises:
        McaError: torch is not installed, as our graph is exported from it, or a peer is unknown.
    """
    import torch

    torch.manual_seed(SEED)
    left_out = _refusals(sessions, against, _BACKBONE_PEERS)
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(max(BATCHES), 3, BACKBONE_SIDE, BACKBONE_SIDE)).astype(np.float32)
    if "torch" in sessions and (reason := why_no_peer("torch-compile")):
        left_out["torch"] = reason
    usable = [name for name in sessions if name not in left_out]
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = build_ours(BACKBONE_SIDE).eval()
        path, spec = _export(ours, Path(folder)) if usable else (Path(), None)
        opened = {name: _open_file(path, name, settings.threads) for name in usable if name != "torch"}
        peers = {name: _torch_call(name, ours, settings.threads) for name in against if name not in left_out}
        for batch in BATCHES:
            part = images[:batch]
            calls: dict[str, Callable[[], object]] = {
                name: partial(session.run, {"images": part}) for name, session in opened.items()
            }
            if "torch" in usable and spec is not None:  # compiled for one shape is faster than for any
                calls["torch"] = partial(_compiled(ours, spec, settings.threads).run, {"images": part})
            calls |= {name: partial(call, part) for name, call in peers.items()}
            cases[f"base {BACKBONE_SIDE} px, batch {batch}"] = interleave(
                calls,
                settings.runs,
                images=batch,
                gflop=BASE_GFLOP * batch,
                between=settings.between,
            )
    return Outcome(cases, left_out, _digest([images]))


def bench_segmentation(
    model: Path, sessions: list[str], against: list[str], settings: BenchSettings
) -> Outcome:
    """From an image to its overlapping instances at 640 x 512: the bundle in every session, and the peers."""
    left_out = _refusals(sessions, against, _SEGMENTATION_PEERS)
    return _images(model, sessions, against, left_out, settings, whole=False)


def bench_pipeline(model: Path, sessions: list[str], against: list[str], settings: BenchSettings) -> Outcome:
    """From an image to segmented and embedded objects at 640 x 512: the bundle in every session."""
    left_out = _refusals(sessions, against, _PIPELINE_PEERS)
    return _images(model, sessions, against, left_out, settings, whole=True)


def _images(
    model: Path,
    sessions: list[str],
    against: list[str],
    left_out: dict[str, str],
    settings: BenchSettings,
    *,
    whole: bool,
) -> Outcome:
    """One image after the other on all threads; and several at once, which share the threads out."""
    bundle = ModelBundle.open(model)
    catalogue = Catalogue(SEED, 60)
    scenes = [render_scene(catalogue, SEED, i).image for i in range(SCENES)]
    sizes = {
        f"{width} x {height}": [np.asarray(cv2.resize(image, (width, height)), np.uint8) for image in scenes]
        for height, width in SIZES
    }
    names = {
        **{name: name for name in sessions},
        **({"torch-eager": "torch"} if "torch-eager" in against else {}),
    }
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for at_once in dict.fromkeys((1, settings.at_once)):
        threads = max(1, settings.threads // at_once)
        options = SessionOptions(threads=threads, parallel=at_once)
        calls: dict[str, Callable[[NDArray[np.uint8]], object]] = {}
        for name, back_end in names.items():
            if name in left_out:
                continue
            try:
                pipeline = PerceptionPipeline(
                    bundle, open_sessions(bundle, session=back_end, options=options)
                )
            except BundleError as error:
                left_out[name] = str(error)
                continue
            calls[name] = pipeline.perceive if whole else pipeline.candidates
        if "torchvision-maskrcnn" in against and "torchvision-maskrcnn" not in left_out:
            calls["torchvision-maskrcnn"] = _mask_rcnn(threads)
        for size, images in sizes.items():
            how = f"{at_once} at once" if at_once > 1 else "one by one"
            cases[f"{size}, {how}"] = interleave_images(
                calls, images, settings.runs, at_once=at_once, between=settings.between
            )
    finder = PerceptionPipeline(bundle, open_sessions(bundle, session="onnxruntime-cpu"))
    found = [len(finder.perceive(image)) for images in sizes.values() for image in images]
    facts = {"objects_per_image": round(float(np.mean(found)), 2), "most_objects": max(found)}
    return Outcome(cases, left_out, _digest([image for images in sizes.values() for image in images]), facts)


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


def _export(module: Any, folder: Path) -> tuple[Path, GraphSpec]:
    import torch
    from torch.export import Dim

    from mca_perception.deploy.export import export_graph
    from mca_perception.training.graphs import Features

    path = folder / "backbone.onnx"
    example = torch.zeros(2, 3, BACKBONE_SIDE, BACKBONE_SIDE)
    batch = {0: Dim("N", min=1, max=64)}
    entry = export_graph(
        Features(module), {"images": example}, ["features"], path, dynamic_shapes={"images": batch}
    )
    return path, GraphSpec.model_validate(entry)


def _compiled(module: Any, spec: GraphSpec, threads: int) -> Session:
    from mca_perception.training.graphs import Features
    from mca_perception.training.torch_sessions import TorchSession

    return TorchSession(Features(module), spec, compiled=True, threads=threads)


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


def _torch_call(name: str, ours: Any, threads: int) -> Callable[[NDArray[np.float32]], object]:
    import torch

    model = BUILDERS[name](BACKBONE_SIDE).eval() if name in BUILDERS else ours

    def run(batch: torch.Tensor) -> torch.Tensor:
        return features(model, batch)

    forward = torch.compile(run, dynamic=False) if name == "torch-compile" else run

    def call(batch: NDArray[np.float32]) -> object:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return forward(torch.from_numpy(batch)).numpy()

    return call


def _mask_rcnn(threads: int) -> Callable[[NDArray[np.uint8]], object]:
    """Mask R-CNN R50-FPN of torchvision, which scales images to 800 px by itself unless told their size."""
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(SEED)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=512, max_size=640).eval()

    def call(image: NDArray[np.uint8]) -> object:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])

    return call


def _digest(arrays: list[NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
