"""Every back end gives the same numbers; the automatic choice says what it chose and why not another."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.deploy.sessions import BACKENDS, ORDER, Choice, choose, why_not
from mca_perception.deploy.sessions import onnx_runtime as ort_backend
from mca_perception.errors import BundleError
from mca_perception.pipeline import PerceptionPipeline
from tests.support.bundles import bundle_files, draw_tote, manifest_fields, write_colour_bundle

CPU_BACKENDS = ["onnxruntime-cpu", "openvino"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


def usable(name: str) -> str:
    """The back end, or skip the test with its reason."""
    if reason := why_not(name):
        pytest.skip(reason)
    return name


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_back_ends_find_the_same_objects(bundle, name) -> None:
    image, _ = draw_tote((256, 320), {"red": (0.1, 0.1, 0.4, 0.4), "blue": (0.5, 0.5, 0.9, 0.9)})
    expected = PerceptionPipeline.from_bundle(bundle.path, providers=["CPUExecutionProvider"]).perceive(image)
    found = PerceptionPipeline.from_bundle(bundle.path, session=usable(name)).perceive(image)
    assert len(found) == len(expected) == 2
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.5)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-4)


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_sessions_declare_warm_up_and_run_aside(bundle, name) -> None:
    sessions = open_sessions(bundle, graphs=["backbone"], session=usable(name))
    assert list(sessions) == ["backbone"]
    session = sessions["backbone"]
    (images,) = session.inputs
    assert (images.name, images.dtype, images.shape[1]) == ("images", "float32", 3)
    assert session.output_names == ("features",)
    assert session.device.startswith("CPU")
    assert session.warm_up({"images": (1, 3, 32, 32)}) > 0
    array = np.random.default_rng(0).normal(size=(2, 3, 32, 48)).astype(np.float32)
    result = session.submit({"images": array}).result(timeout=60)["features"]
    kept = result.copy()
    session.run({"images": -array})
    np.testing.assert_array_equal(result, kept)  # a later run leaves earlier results alone
    np.testing.assert_allclose(result[:, 0], array.mean(axis=(2, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="the graph takes"):
        session.run({"pictures": array})
    session.close()


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_runs_at_the_same_time_leave_each_other_alone(bundle, name) -> None:
    options = SessionOptions(threads=1, parallel=2)
    session = open_sessions(bundle, graphs=["backbone"], session=usable(name), options=options)["backbone"]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1 + i % 2, 3, 64, 32 + 16 * (i % 3))).astype(np.float32) for i in range(24)]
    expected = [session.run({"images": array})["features"] for array in arrays]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda array: session.run({"images": array})["features"], arrays))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", CPU_BACKENDS)
@pytest.mark.parametrize("content", [b"", b"foreign", "truncated"])
def test_foreign_and_truncated_graphs_are_refused(tmp_path: Path, name, content) -> None:
    usable(name)
    files = bundle_files()
    files["backbone.onnx"] = files["backbone.onnx"][:150] if content == "truncated" else content
    damaged = write_bundle(tmp_path / "damaged", manifest_fields(), files)
    with pytest.raises(BundleError, match=r"cannot (load|run) .*backbone\.onnx"):
        open_sessions(damaged, session=name)


def test_newer_opset_is_refused(tmp_path: Path) -> None:
    import onnx

    files = bundle_files()
    model = onnx.load_from_string(files["backbone.onnx"])
    model.opset_import[0].version = 99
    files["backbone.onnx"] = model.SerializeToString()
    newer = write_bundle(tmp_path / "newer", manifest_fields(), files)
    with pytest.raises(BundleError, match=r"backbone\.onnx.*Opset 99"):
        open_sessions(newer, session="onnxruntime-cpu")


def test_unknown_back_end_and_two_wishes_are_refused(bundle) -> None:
    with pytest.raises(BundleError, match="no session 'tpu'; choose one of auto, tensorrt"):
        open_sessions(bundle, session="tpu")
    with pytest.raises(BundleError, match="exclude each other"):
        open_sessions(bundle, session="openvino", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_back_end_that_cannot_be_used_says_why(bundle, name) -> None:
    reason = why_not(name)
    if reason is None:
        pytest.skip(f"{name} can be used here")
    assert len(reason) > 20
    with pytest.raises(BundleError, match=f"session '{name}' cannot be used: "):
        open_sessions(bundle, session=name)


def test_missing_provider_is_refused(bundle, monkeypatch) -> None:
    monkeypatch.setattr(ort_backend.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BundleError, match="no CUDA provider; install onnxruntime-gpu"):
        open_sessions(bundle, session="onnxruntime-cuda")


def test_cuda_that_falls_back_is_refused(bundle, monkeypatch) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = ort_backend.ort.InferenceSession
    monkeypatch.setattr(ort_backend.ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(
        ort_backend.ort,
        "InferenceSession",
        lambda model, options, **_: real(model, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(BundleError, match="could not start its CUDA provider"):
        open_sessions(bundle, session="onnxruntime-cuda")


def test_automatic_choice_tells_its_reasons(bundle, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="mca_perception"):
        sessions = open_sessions(bundle)
    choice = sessions.choice
    assert choice.name in ORDER
    assert set(choice.refused) == set(ORDER[: ORDER.index(choice.name)])
    assert str(choice) in caplog.text
    assert choose().name in ORDER


def test_automatic_choice_passes_over_what_cannot_run_the_graphs(bundle, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise BundleError("this graph has an operator too many")

    monkeypatch.setattr("mca_perception.deploy.sessions.selection.why_not", lambda _: None)
    monkeypatch.setitem(BACKENDS, "tensorrt", (ort_backend.__name__, "fail", "why_no_cpu"))
    monkeypatch.setitem(BACKENDS, "onnxruntime-cuda", (ort_backend.__name__, "fail", "why_no_cpu"))
    monkeypatch.setitem(BACKENDS, "openvino", (ort_backend.__name__, "fail", "why_no_cpu"))
    monkeypatch.setattr(ort_backend, "fail", fail, raising=False)
    choice = open_sessions(bundle).choice
    assert choice.name == "onnxruntime-cpu"
    assert choice.refused["openvino"] == "this graph has an operator too many"
    assert str(choice).startswith("onnxruntime-cpu; not tensorrt: this graph")


def test_choice_without_refusals_is_its_name() -> None:
    assert str(Choice("triton")) == "triton"


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_computes_in_float32_unless_told(bundle) -> None:
    assert open_sessions(bundle, session="openvino")["backbone"].device == "CPU (f32)"


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_compiled_graphs_are_taken_from_the_cache(bundle, tmp_path, name) -> None:
    from mca_perception.deploy.engine_cache import EngineCache

    cache = EngineCache(tmp_path / "engines")
    options = SessionOptions(cache=cache, threads=1)
    array = {"images": np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)}
    first = open_sessions(bundle, graphs=["backbone"], session=usable(name), options=options)
    (entry,) = cache.folder.glob("*.engine")
    written = entry.stat().st_mtime_ns
    second = open_sessions(bundle, graphs=["backbone"], session=name, options=options)
    assert entry.stat().st_mtime_ns == written
    expected = first["backbone"].run(array)["features"]
    np.testing.assert_allclose(second["backbone"].run(array)["features"], expected, atol=1e-6)
    entry.write_bytes(entry.read_bytes()[:-10])
    third = open_sessions(bundle, graphs=["backbone"], session=name, options=options)
    np.testing.assert_allclose(third["backbone"].run(array)["features"], expected, atol=1e-6)
    assert entry.stat().st_size > 10
