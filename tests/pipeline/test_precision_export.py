"""A bundle is converted, judged and written; one that loses too much is not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mca_perception.cli.main import main
from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.session import open_sessions
from mca_perception.deploy.sessions import why_not
from mca_perception.deploy.sessions.shape_profiles import profiles_of
from mca_perception.errors import AccuracyError, BundleError, CalibrationError, DatasetError
from mca_perception.pipeline import PerceptionPipeline, precision_export
from mca_perception.pipeline.accuracy_gate import Check, GateThresholds, run_gate
from mca_perception.pipeline.calibration_images import LIST_NAME, choose_images
from mca_perception.pipeline.precision_export import PrecisionOptions, export_precision
from tests.support.bundles import bundle_files, draw_tote, manifest_fields, write_inspecting_bundle
from tests.support.datasets import write_pick_set, write_tote_set
from tests.support.defects import write_defect_set


def with_projection() -> dict[str, bytes]:
    """The colour bundle's files, its embedding passing through a product with the identity."""
    files = bundle_files()
    model = onnx.load_from_string(files["identification.onnx"])
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "project"))
    last = model.graph.node[-1]
    model.graph.node.insert(
        len(model.graph.node) - 1,
        onnx.helper.make_node("MatMul", [last.input[0], "project"], ["projected"], "project"),
    )
    model.graph.node[-1].input[0] = "projected"
    onnx.checker.check_model(model)
    return {**files, "identification.onnx": model.SerializeToString()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("models") / "colours"
    return write_bundle(folder, manifest_fields(), with_projection())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tote_set(folder / "totes", 4, split="val")
    write_pick_set(folder / "picks", 6)
    return folder


@pytest.fixture
def options(data: Path, monkeypatch, tmp_path) -> PrecisionOptions:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return PrecisionOptions(
        "int8",
        calibration=[data / "totes" / "mix-object-tote" / "val.json"],
        calibration_images=3,
        evaluation=[data / "totes", data / "picks"],
    )


def broken(path: Path, target: Path, *_: object, **__: object) -> None:
    """A conversion that goes wrong: what it converts no longer depends on its input."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 0 + 0.5, tensor.name))
    onnx.save(model, target)


def test_int8_bundle_passes_and_tells_what_it_is(bundle, data, options, tmp_path) -> None:
    converted, gate = export_precision(bundle, tmp_path / "int8", options)
    assert gate is not None
    assert gate.passed
    assert [(check.metric, check.reference, check.samples) for check in gate.checks] == [
        ("mask AP50", pytest.approx(1), 4),
        ("Recall@1", pytest.approx(1), 6),
    ]
    precision = converted.manifest.precision
    assert precision is not None
    assert (precision.kind, precision.reference) == ("int8", bundle.fingerprint)
    assert precision.converted == ("backbone.onnx", "identification.onnx", "segmentation.onnx")
    assert precision.gate["passed"] is True
    assert precision.regression is False
    assert converted.fingerprint != bundle.fingerprint
    assert converted.embedding_fingerprint != bundle.embedding_fingerprint
    assert "weights.safetensors" not in converted.manifest.files
    listed = json.loads((converted.path / LIST_NAME).read_text())["images"]
    assert len(listed) == 3
    assert all("/" not in entry["file_name"] for entry in listed)
    card = (converted.path / "README.md").read_text()
    assert "| mask AP50 | 1.0000 | 1.0000 | 4 |" in card


def test_broken_graph_is_not_written_and_its_layer_is_named(bundle, options, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(precision_export, "quantise", broken)
    with pytest.raises(AccuracyError, match=r"Recall@1 1\.0000 -> 0\.[0-9]+ .*FAILED") as failure:
        export_precision(bundle, tmp_path / "int8", options)
    assert "| projected | MatMul |" in str(failure.value)
    assert "--allow-regression" in str(failure.value)
    assert not (tmp_path / "int8").exists()


def test_regression_is_written_on_request_and_stated(bundle, options, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(precision_export, "quantise", broken)
    converted, gate = export_precision(bundle, tmp_path / "int8", replace(options, allow_regression=True))
    assert gate is not None
    assert not gate.passed
    assert converted.manifest.precision is not None
    assert converted.manifest.precision.regression is True
    assert "lost more than was allowed" in (converted.path / "README.md").read_text()


def test_a_wider_threshold_lets_it_pass(bundle, data, options, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(precision_export, "quantise", broken)
    wide = replace(options, thresholds=GateThresholds(recall_at_1=1.0))
    assert export_precision(bundle, tmp_path / "int8", wide)[1].passed


@pytest.mark.parametrize("exported", [float("nan"), 0.5])
def test_a_metric_that_is_lower_or_no_number_fails(exported) -> None:
    assert not Check("d", "m", 0.9, exported, 0.01, 10).passed
    assert Check("d", "m", 0.9, 0.895, 0.01, 10).passed


def test_float32_and_float16_need_no_calibration(bundle, options, data, tmp_path) -> None:
    for precision in ("fp32", "fp16"):
        plain = PrecisionOptions(precision, evaluation=[data / "picks"], evaluation_limit=3)
        converted, gate = export_precision(bundle, tmp_path / precision, plain)
        assert gate is not None
        assert gate.passed
        assert [check.samples for check in gate.checks] == [3]
        assert (converted.embedding_fingerprint == bundle.embedding_fingerprint) is (precision == "fp32")


@pytest.mark.skipif(why_not("openvino") is not None, reason="OpenVINO is not installed")
def test_bfloat16_is_computed_in_bfloat16_where_the_processor_can(bundle, data, tmp_path) -> None:
    wanted = PrecisionOptions("bf16", session="openvino", evaluation=[data / "totes", data / "picks"])
    converted, gate = export_precision(bundle, tmp_path / "bf16", wanted)
    assert gate is not None
    assert gate.passed
    session = open_sessions(converted, session="openvino")["backbone"]
    native = {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert session.device == ("CPU (bf16)" if native else "CPU (f32)")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_may_take_pixels_and_find_the_same(bundle, data, tmp_path, precision) -> None:
    wanted = PrecisionOptions(precision, fused=True, evaluation=[data / "totes", data / "picks"])
    converted, gate = export_precision(bundle, tmp_path / "fused", wanted)
    assert gate is not None
    assert [check.exported for check in gate.checks] == [pytest.approx(1), pytest.approx(1)]
    (images,) = converted.manifest.graphs["backbone"].inputs
    assert (images.dtype, images.shape) == ("uint8", ["N", "H", "W", 3])
    assert profiles_of(converted, "backbone")[0].as_lists() == {"images": [[1, 256, 320, 3]] * 3}
    image, _ = draw_tote((256, 320), {"red": (0.1, 0.1, 0.4, 0.4)})
    models = [PerceptionPipeline.from_bundle(b.path, session="onnxruntime-cpu") for b in (bundle, converted)]
    expected, found = (model.perceive(image) for model in models)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.5)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-3)
    assert converted.embedding_fingerprint != bundle.embedding_fingerprint


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_model_that_only_inspects_picks_is_judged_by_what_it_finds(
    precision, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picks = write_defect_set(tmp_path / "defects")
    inspecting = write_inspecting_bundle(tmp_path / "model", only=True)
    wanted = PrecisionOptions(
        precision, calibration=[picks / "data"], calibration_images=9, evaluation=[picks]
    )
    converted, gate = export_precision(inspecting, tmp_path / "out", wanted)
    assert gate is not None
    (check,) = gate.checks
    assert (check.data, check.metric, check.samples) == ("defects/test", "defect recall at FPR 1 %", 12)
    # Every other defect of the set is dark, not coloured: this model cannot see those.
    assert check.reference == pytest.approx(check.exported)
    assert 0.4 < check.reference < 0.6
    assert converted.manifest.precision is not None
    assert {"backbone.onnx", "defects.onnx"} <= set(converted.manifest.precision.converted)


def test_without_evaluation_the_card_says_so(bundle, tmp_path) -> None:
    converted, gate = export_precision(bundle, tmp_path / "out", PrecisionOptions("fp16"))
    assert gate is None
    assert "was not compared" in (converted.path / "README.md").read_text()


def test_bad_requests_are_refused(bundle, options, tmp_path) -> None:
    with pytest.raises(CalibrationError, match="give a folder with --calibration"):
        export_precision(bundle, tmp_path / "a", PrecisionOptions("int8"))
    with pytest.raises(BundleError, match="choose another folder for --out"):
        export_precision(bundle, bundle.path, options)
    converted, _ = export_precision(bundle, tmp_path / "b", PrecisionOptions("fp16"))
    with pytest.raises(BundleError, match="is in fp16 already"):
        export_precision(converted, tmp_path / "c", PrecisionOptions("fp16"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds neither picks"):
        run_gate(bundle, bundle, [tmp_path / "empty"])


def test_calibration_sets_that_are_empty_or_too_small_are_refused(data, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="holds no image"):
        choose_images([tmp_path / "empty"], 1)
    with pytest.raises(CalibrationError, match="holds 4 images, 5 are needed"):
        choose_images([data / "totes" / "mix-object-tote" / "val.json"], 5)
    with pytest.raises(CalibrationError, match="neither a folder nor a COCO file"):
        choose_images([tmp_path / "absent"], 1)
    (tmp_path / "list.json").write_text('{"pictures": []}')
    with pytest.raises(CalibrationError, match="does not list images"):
        choose_images([tmp_path / "list.json"], 1)
    (tmp_path / "list.json").write_text('{"images": [{"file_name": "absent.png"}]}')
    with pytest.raises(CalibrationError, match=r"absent\.png, which is missing"):
        choose_images([tmp_path / "list.json"], 1)
    with pytest.raises(CalibrationError, match="0 calibration images"):
        choose_images([tmp_path], 0)


def test_images_are_spread_over_all_sources(data) -> None:
    chosen = choose_images([data / "totes", data / "picks"], 5)
    assert [path.is_relative_to(data / "totes") for path in chosen.paths] == [True] * 2 + [False] * 3
    assert chosen.digest == choose_images([data / "totes", data / "picks"], 5).digest
    assert chosen.digest != choose_images([data / "totes", data / "picks"], 4).digest


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mca", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_command_converts_and_gates(bundle, data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = ["--precision", "int8", "--calibration", data / "totes", "--calibration-images", 3]
    out = tmp_path / "int8"
    assert run(monkeypatch, bundle.path, "--out", out, *common, "--evaluate", data / "picks") == 0
    output = capsys.readouterr().out
    assert "Recall@1 1.0000 -> 1.0000 (6 samples, at most -0.01): passed" in output
    assert f"(was {bundle.fingerprint}: galleries are embedded again)" in output
    assert ModelBundle.open(out).manifest.precision.kind == "int8"
    monkeypatch.setattr(precision_export, "quantise", broken)
    again = tmp_path / "again"
    assert run(monkeypatch, bundle.path, "--out", again, *common, "--evaluate", data / "picks") == 2
    assert "FAILED" in capsys.readouterr().err
    assert not again.exists()
    assert run(monkeypatch, bundle.path, "--precision", "fp16") == 2
    assert "--out" in capsys.readouterr().err


def test_command_checks_graphs_for_tensorrt(bundle, data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = ["--precision", "int8", "--calibration", data / "totes", "--calibration-images", 3]
    assert run(monkeypatch, bundle.path, "--out", tmp_path / "rt", *common, "--target", "tensorrt") == 0
    assert "identification: TensorRT 10.0 documents everything that it holds" in capsys.readouterr().out
    assert run(monkeypatch, bundle.path, "--build-only", "--target", "tensorrt") == 2
    assert "session 'tensorrt' cannot be used" in capsys.readouterr().err
    assert run(monkeypatch, bundle.path, "--build-only", "--target", "triton") == 2
    assert "add --target tensorrt" in capsys.readouterr().err


def test_command_writes_a_triton_repository(bundle, tmp_path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, bundle.path, "--out", tmp_path / "repository", "--target", "triton") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert len(list((tmp_path / "repository").glob("*/1/model.onnx"))) == 3
    args = [bundle.path, "--out", tmp_path / "repository", "--target", "triton", "--precision", "fp16"]
    assert run(monkeypatch, *args) == 2
    assert "export with --precision first" in capsys.readouterr().err
