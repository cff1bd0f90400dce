"""A bundle in another precision: graphs converted, ranges calibrated, accuracy checked before anything is written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from mca_perception.deploy.bundle import SCHEMA_VERSION, ModelBundle, write_bundle
from mca_perception.deploy.card import CARD_NAME, model_card
from mca_perception.deploy.fused_preprocessing import IMAGES, fuse_preprocessing
from mca_perception.deploy.manifest import Manifest
from mca_perception.deploy.precision.half import to_half
from mca_perception.deploy.precision.int8 import Int8Settings, quantise
from mca_perception.deploy.precision.layer_errors import layer_errors, layer_table
from mca_perception.errors import AccuracyError, BundleError, CalibrationError
from mca_perception.pipeline.accuracy_gate import GateResult, GateThresholds, run_gate
from mca_perception.pipeline.calibration_images import (
    LIST_NAME,
    CalibrationImages,
    SampleStore,
    choose_images,
    record_samples,
)
from mca_perception.pipeline.references import Progress, no_progress
from mca_perception.resources import cache_folder

__all__ = ["PrecisionOptions", "export_precision"]

Precision = Literal["fp32", "fp16", "bf16", "int8"]
REPORTED_SAMPLES = 4


@dataclass(frozen=True)
class PrecisionOptions:
    """How a bundle is converted and judged.

    Attributes:
        precision: of matrix products and convolutions.
        calibration: folders or COCO files with images for int8.
        calibration_images: how many of them to look at.
        keep: graphs that stay as they are.
        fused: graphs take uint8 ``[N, H, W, 3]`` and normalise by themselves.
        int8: further settings of int8.
        evaluation: folders to run the accuracy gate on.
        thresholds: of the gate.
        evaluation_limit: images or picks per folder.
        session: back end that the exported model is judged in.
        allow_regression: write the bundle even if it fails, and say so in its manifest.
    """

    precision: Precision
    calibration: Sequence[Path] = ()
    calibration_images: int = 64
    keep: Sequence[str] = ()
    fused: bool = False
    int8: Int8Settings = field(default_factory=Int8Settings)
    evaluation: Sequence[Path] = ()
    thresholds: GateThresholds = field(default_factory=GateThresholds)
    evaluation_limit: int | None = None
    session: str = "onnxruntime-cpu"
    allow_regression: bool = False


def export_precision(
    bundle: ModelBundle, directory: Path, options: PrecisionOptions, *, progress: Progress = no_progress
) -> tuple[ModelBundle, GateResult | None]:
    """Write a bundle in another precision.

    The new bundle embeds slightly differently, so it has another fingerprint: galleries are embedded again. It holds
    no weights for training, these stay with the bundle that it came from.

    Args:
        bundle: the float32 bundle.
        directory: bundle folder to write; another one than the bundle's own.
        options: precision, calibration and gate.
        progress: shows how far it is.

    Returns:
        The bundle, and what the gate found; None without evaluation data.

    Raises:
        AccuracyError: the gate failed; nothing was written. The message tells the metrics and where errors arise.
        BundleError: the bundle is in another precision already, or ``directory`` is its own.
        CalibrationError: int8 without images, or with too few.
        DatasetError: evaluation data cannot be read.
    """
    if bundle.manifest.precision is not None:
        raise BundleError(
            f"{bundle.path} is in {bundle.manifest.precision.kind} already; export the float32 bundle it came from"
        )
    if directory.resolve() == bundle.path.resolve():
        raise BundleError(f"{directory} is the bundle that is exported; choose another folder for --out")
    if options.precision == "int8" and not options.calibration:
        raise CalibrationError("int8 needs images to find its ranges on; give a folder with --calibration")
    with tempfile.TemporaryDirectory() as work:
        folder, store = Path(work), SampleStore(Path(work))
        listed = _calibrate(bundle, options, store, progress)
        graphs = _convert(bundle, options, store, listed, Path(work))
        if options.fused:
            graphs |= _fuse(bundle, graphs, folder)
        staged = _write(bundle, folder / "bundle", options, graphs, listed)
        gate = None
        if options.evaluation:
            gate = run_gate(
                bundle,
                staged,
                options.evaluation,
                thresholds=options.thresholds,
                limit=options.evaluation_limit,
                session=options.session,
                progress=progress,
            )
            if not gate.passed and not options.allow_regression:
                report = _layer_report(bundle, staged, store)
                raise AccuracyError(
                    f"{options.precision} loses more than is allowed, nothing was written:\n{gate}\n{report}"
                    "Change the settings, or write it nevertheless with --allow-regression"
                )
        return _write(bundle, directory, options, graphs, listed, gate), gate


def _calibrate(
    bundle: ModelBundle, options: PrecisionOptions, store: SampleStore, progress: Progress
) -> CalibrationImages | None:
    """Record what the graphs are given for the calibration images; None without any."""
    if not options.calibration:
        return None
    images = choose_images(options.calibration, options.calibration_images)
    record_samples(bundle, images, store, progress=progress)
    return images


def _convert(
    bundle: ModelBundle,
    options: PrecisionOptions,
    store: SampleStore,
    images: CalibrationImages | None,
    folder: Path,
) -> dict[str, Path]:
    """Converted graphs by file name; those that calibration images do not reach stay in float32."""
    graphs: dict[str, Path] = {}
    unknown = set(options.keep) - set(bundle.manifest.graphs)
    if unknown:
        raise BundleError(
            f"{bundle.path} has no graph {min(unknown)!r} to keep; it has {sorted(bundle.manifest.graphs)}"
        )
    for name, spec in bundle.manifest.graphs.items():
        if name in options.keep:
            continue
        path, target = bundle.path_of(name), folder / f"converted-{name}.onnx"
        if options.precision == "int8":
            if images is None or name not in store.graphs:
                continue
            quantise(
                path,
                target,
                partial(store.samples, name),
                settings=options.int8,
                data_digest=images.digest,
                cache=cache_folder("calibration"),
            )
        elif options.precision == "fp32":
            continue
        else:
            to_half(path, target, options.precision)
        graphs[spec.file] = target
    return graphs


def _fuse(bundle: ModelBundle, graphs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Graphs that take images, by file name, with their preprocessing inside."""
    preprocessing, fused = bundle.manifest.preprocessing, {}
    if preprocessing.fused:
        raise BundleError(
            f"{bundle.path} normalises inside its graphs already; leave --fuse-preprocessing out"
        )
    for name, spec in bundle.manifest.graphs.items():
        if any(tensor.name == IMAGES for tensor in spec.inputs):
            target = fused[spec.file] = folder / f"fused-{name}.onnx"
            source = graphs.get(spec.file, bundle.path_of(name))
            fuse_preprocessing(source, target, preprocessing.mean, preprocessing.std)
    return fused


def _write(
    bundle: ModelBundle,
    directory: Path,
    options: PrecisionOptions,
    graphs: Mapping[str, Path],
    images: CalibrationImages | None,
    gate: GateResult | None = None,
) -> ModelBundle:
    fields = bundle.manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    fields["metrics"] = {}  # those of another model
    if options.fused:
        fields["preprocessing"]["fused"] = True
        for graph in fields["graphs"].values():
            for tensor in graph["inputs"]:
                if tensor["name"] == IMAGES:
                    batch, channels, height, width = tensor["shape"]
                    tensor |= {"dtype": "uint8", "shape": [batch, height, width, channels]}
    fields["precision"] = {
        "kind": options.precision,
        "reference": bundle.fingerprint,
        "converted": sorted(graphs),
        "settings": asdict(options.int8) if options.precision == "int8" else {},
        "calibration": LIST_NAME if images else None,
        "gate": gate.to_manifest() if gate else {},
        "regression": gate is not None and not gate.passed,
    }
    files: dict[str, str | Path | bytes] = {
        name: bundle.path / name for name in bundle.manifest.files if not name.endswith(".safetensors")
    }
    files |= graphs
    if images is not None:
        files[LIST_NAME] = images.to_json()
    card = model_card(Manifest.model_validate({**fields, "schema_version": SCHEMA_VERSION, "files": {}}))
    files[CARD_NAME] = card.encode()
    return write_bundle(directory, fields, files)


def _layer_report(bundle: ModelBundle, exported: ModelBundle, store: SampleStore) -> str:
    """Where the graphs' errors arise, as far as there are samples to tell from."""
    assert exported.manifest.precision is not None
    converted, parts = exported.manifest.precision.converted, []
    for name, spec in bundle.manifest.graphs.items():
        if name in store.graphs and spec.file in converted:
            errors = layer_errors(
                bundle.path_of(name), exported.path_of(name), store.samples(name, REPORTED_SAMPLES)
            )
            if not errors:
                continue
            parts.append(f"\n{name}: largest jumps of the error\n\n{layer_table(errors)}")
    return "".join(parts) or "Give --calibration to see in which layers the errors arise.\n"
