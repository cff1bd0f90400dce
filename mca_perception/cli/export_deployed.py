"""`mca export` of a bundle for the machines that it will run on: precision, TensorRT, Triton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import BundleError, McaError

__all__ = ["Deployment", "export_deployed"]


@dataclass(frozen=True)
class Deployment:
    """Options of the command; see `mca export --help`."""

    precision: Literal["fp32", "fp16", "bf16", "int8"] | None
    target: Literal["onnx", "tensorrt", "triton"]
    calibration: tuple[Path, ...] = ()
    calibration_images: int = 64
    keep: tuple[str, ...] = ()
    fused: bool = False
    evaluation: tuple[Path, ...] = ()
    evaluation_limit: int | None = None
    max_loss: float = 0.01
    allow_regression: bool = False
    build_only: bool = False


def export_deployed(source: Path, out: Path | None, options: Deployment) -> None:
    """Convert a bundle and write it as its target wants it.

    Raises:
        AccuracyError: the gate failed.
        BundleError: the bundle, the target or a graph cannot be used.
        McaError: options that do not go together.
    """
    bundle = ModelBundle.open(source)
    if options.build_only:
        _build_engines(bundle, options)
        return
    if out is None:
        raise McaError("name the folder to write with --out")
    if options.target == "triton":
        if options.precision is not None:
            raise McaError(
                "--target triton serves the bundle's own graphs; export with --precision first, then that"
            )
        _write_triton(bundle, out)
        return
    converted = _convert(bundle, out, options)
    if options.target == "tensorrt":
        _check_tensorrt(converted)


def _convert(bundle: ModelBundle, out: Path, options: Deployment) -> ModelBundle:
    from mca_perception.cli import reports
    from mca_perception.deploy.precision.int8 import Int8Settings
    from mca_perception.pipeline.accuracy_gate import GateThresholds
    from mca_perception.pipeline.precision_export import PrecisionOptions, export_precision

    settings = PrecisionOptions(
        precision=options.precision or "fp32",
        calibration=options.calibration,
        calibration_images=options.calibration_images,
        keep=options.keep,
        fused=options.fused,
        int8=Int8Settings(symmetric=options.target == "tensorrt"),
        evaluation=options.evaluation,
        thresholds=GateThresholds(options.max_loss, options.max_loss, options.max_loss),
        evaluation_limit=options.evaluation_limit,
        # ONNX Runtime has no bfloat16 kernels for processors.
        session="openvino" if options.precision == "bf16" else "onnxruntime-cpu",
        allow_regression=options.allow_regression,
    )
    with reports.progress_bar() as progress:
        converted, gate = export_precision(bundle, out, settings, progress=progress)
    typer.echo(gate or "not compared with its source: give --evaluate")
    typer.echo(
        f"{converted.path}  {settings.precision}  fingerprint {converted.fingerprint} (was {bundle.fingerprint}: "
        "galleries are embedded again)"
    )
    return converted


def _write_triton(bundle: ModelBundle, out: Path) -> None:
    from mca_perception.deploy.triton_repository import write_repository

    for name in write_repository(bundle, out):
        typer.echo(f"{out / name}")


def _check_tensorrt(bundle: ModelBundle) -> None:
    """Say which graphs TensorRT's parser can take by its documentation; refuse if it can take none."""
    from mca_perception.deploy.tensor_rt_support import MATRIX_VERSION, unsupported

    problems = {name: unsupported(bundle.path_of(name)) for name in bundle.manifest.graphs}
    for name, found in problems.items():
        typer.echo(f"{name}: {'; '.join(found) or f'{MATRIX_VERSION} documents everything that it holds'}")
    if all(problems.values()):
        raise BundleError(f"TensorRT takes no graph of {bundle.path}; deploy it with onnxruntime-cuda")


def _build_engines(bundle: ModelBundle, options: Deployment) -> None:
    from mca_perception.deploy.session import SessionOptions, open_sessions
    from mca_perception.deploy.sessions.shape_profiles import profiles_of

    if options.target != "tensorrt":
        raise McaError("--build-only builds TensorRT engines; add --target tensorrt")
    for name in bundle.manifest.graphs:
        profiles = len(profiles_of(bundle, name))
        session = open_sessions(bundle, graphs=[name], session="tensorrt", options=SessionOptions(build=True))
        typer.echo(f"{name}: engine for {profiles} shape profiles, {session.choice}")
