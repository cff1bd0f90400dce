"""`mca bench backbone`: base with random weights in every session, beside its peers in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.cli.bench_cases import SEED, BenchSettings, Outcome, digest, refusals
from mca_perception.cli.bench_measure import interleave
from mca_perception.cli.bench_peers import BUILDERS, build_ours, features, why_not
from mca_perception.deploy.manifest import GraphSpec
from mca_perception.deploy.sessions.base import Session
from mca_perception.errors import McaError

if TYPE_CHECKING:
    import torch

__all__ = ["bench_backbone"]

BACKBONE_SIDE = 224
BATCHES = (1, 8)
BASE_GFLOP = 35.1
"""Arithmetic of one pass of base at 224 px: 12 layers, 197 tokens, width 768; a product counts two."""

PEERS = ("torch-eager", "torch-compile", "timm", "torchscale")


def bench_backbone(sessions: list[str], against: list[str], settings: BenchSettings) -> Outcome:
    """Base at 224 px with random weights: our graph in every session, our module and the peers in torch.

    The session ``torch`` is our compiled one, for every batch size anew.

    Raises:
        McaError: torch is not installed, as our graph is exported from it, or a peer is unknown.
    """
    import torch

    torch.manual_seed(SEED)
    left_out = refusals(sessions, against, PEERS)
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(max(BATCHES), 3, BACKBONE_SIDE, BACKBONE_SIDE)).astype(np.float32)
    if "torch" in sessions and (reason := why_not("torch-compile")):
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
                meter=settings.meter,
            )
    return Outcome(cases, left_out, digest([images]))


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
