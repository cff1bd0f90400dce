"""The TensorRT back end against a stand-in that refuses every call the published bindings would refuse."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.engine_cache import EngineCache
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.deploy.sessions import why_not
from mca_perception.deploy.sessions.shape_profiles import profiles_of
from mca_perception.errors import BundleError
from mca_perception.pipeline import PerceptionPipeline
from tests.support import tensorrt_standin as standin
from tests.support.bundles import draw_tote, write_colour_bundle, write_two_headed_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture(autouse=True)
def tensorrt(monkeypatch) -> type[standin.Journal]:
    standin.Journal.reset()
    for table in (standin.CudaRuntime.device, standin.CudaRuntime.host, standin.CudaRuntime.kept):
        table.clear()
    for name, module in standin.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return standin.Journal


@pytest.fixture
def options(tmp_path) -> SessionOptions:
    return SessionOptions(cache=EngineCache(tmp_path / "engines"))


def images(count: int, height: int, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {"images": rng.normal(size=(count, 3, height, width)).astype(np.float32)}


def test_profiles_are_the_scene_and_batches_of_crops(bundle, tmp_path) -> None:
    scene, crops = profiles_of(bundle, "backbone")
    assert scene.as_lists() == {"images": [[1, 3, 256, 320]] * 3}
    assert crops.as_lists() == {"images": [[1, 3, 32, 32], [8, 3, 32, 32], [64, 3, 32, 32]]}
    (head,) = profiles_of(bundle, "segmentation")
    assert head.as_lists() == {"features": [[1, 321, 3]] * 3, "images": [[1, 3, 256, 320]] * 3}
    (embedding,) = profiles_of(bundle, "identification")
    assert embedding.as_lists()["features"][2] == [64, 5, 3]
    assert embedding.holds({"features": (3, 5, 3)})
    assert not embedding.holds({"features": (65, 5, 3)})
    assert not embedding.holds({"features": (3, 5)})
    with pytest.raises(BundleError, match="as many boxes as it finds"):
        profiles_of(write_two_headed_bundle(tmp_path / "two"), "cascade")


def test_engine_is_built_kept_and_computes_the_same(bundle, options, tensorrt, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="mca_perception"):
        session = open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)["backbone"]
    assert "building: Tactics 50 %" in caplog.text
    assert tensorrt.calls.count("Builder.build_serialized_network") == 1
    assert tensorrt.calls.count("IExecutionContext.set_optimization_profile_async") == 2
    assert (options.cache.folder / "timing-tensorrt-11.4.0.106.cache").read_bytes() == b"timings"
    exact = open_sessions(bundle, graphs=["backbone"], session="onnxruntime-cpu")["backbone"]
    for inputs in (images(1, 256, 320), images(3, 32, 32), images(64, 32, 32), images(2, 32, 32)):
        np.testing.assert_array_equal(session.run(inputs)["features"], exact.run(inputs)["features"])
    assert session.device == "NVIDIA Stand-in, compute capability 9.0"
    session.close()
    assert not standin.CudaRuntime.kept, "GPU memory is given back"
    tensorrt.reset()
    open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)
    assert "Builder.build_serialized_network" not in tensorrt.calls


def test_whoever_opens_it_is_told_what_is_built(bundle, options, caplog) -> None:
    told: list[str] = []
    listening = replace(options, on_state=told.append)
    assert listening == options  # sessions are shared by equal options
    open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=listening)
    assert told[0].startswith("building tensorrt 11.4.0.106 engine for NVIDIA Stand-in")
    assert "building: Tactics 50 %" in told


def test_whole_pipeline_runs(bundle, options, monkeypatch) -> None:
    monkeypatch.setenv("MCA_ENGINE_CACHE", str(options.cache.folder))
    image, _ = draw_tote((256, 320), {"red": (0.1, 0.1, 0.4, 0.4), "blue": (0.5, 0.5, 0.9, 0.9)})
    found = PerceptionPipeline.from_bundle(bundle.path, session="tensorrt").perceive(image)
    expected = PerceptionPipeline.from_bundle(bundle.path, session="onnxruntime-cpu").perceive(image)
    np.testing.assert_allclose(found.boxes, expected.boxes)
    np.testing.assert_allclose(found.embeddings, expected.embeddings)


def test_engine_of_another_gpu_is_not_used(bundle, options, tensorrt, monkeypatch) -> None:
    open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)
    monkeypatch.setattr(standin.CudaRuntime, "name", b"NVIDIA Orin")
    waiting = SessionOptions(cache=options.cache, build=False)
    with pytest.raises(
        BundleError, match=r"no TensorRT engine of backbone\.onnx for NVIDIA Orin.*--build-only"
    ):
        open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=waiting)
    open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)
    assert tensorrt.calls.count("Builder.build_serialized_network") == 2


def test_automatic_choice_takes_engines_but_builds_none(bundle, options) -> None:
    choice = open_sessions(bundle, graphs=["backbone"], options=options).choice
    assert choice.name != "tensorrt"
    assert "--build-only" in choice.refused["tensorrt"]
    open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)
    assert open_sessions(bundle, graphs=["backbone"], options=options).choice.name == "tensorrt"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("parse", r"cannot parse .*backbone\.onnx: No importer registered for op: NoSuchOperator"),
        ("profile", "refuses shapes"),
        ("memory", r"Requested 5 GB, but the device has 1 GB\. If memory ran out"),
        ("deserialise", "cannot load its engine"),
        ("context", "out of memory"),
        ("context profile", "refuses profile 0 of its own engine"),
    ],
)
def test_what_goes_wrong_is_said(bundle, options, tensorrt, fault, message) -> None:
    tensorrt.fail = fault
    with pytest.raises(BundleError, match=message):
        open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)
    assert (list(options.cache.folder.glob("*.engine")) == []) is (fault in ("parse", "profile", "memory"))


def test_faults_at_work_are_said(bundle, options, tensorrt) -> None:
    session = open_sessions(bundle, graphs=["backbone"], session="tensorrt", options=options)["backbone"]
    with pytest.raises(ValueError, match="the engine was built for"):
        session.run(images(1, 64, 64))
    tensorrt.fail = "allocate"
    with pytest.raises(BundleError, match="cudaMalloc failed with cudaErrorMemoryAllocation"):
        session.run(images(1, 32, 32))
    tensorrt.fail = "execute"
    with pytest.raises(RuntimeError, match="could not run the engine"):
        session.run(images(1, 32, 32))


def test_machine_without_gpu_is_refused(bundle, monkeypatch) -> None:
    monkeypatch.setattr(standin.CudaRuntime, "devices", 0)
    assert "CUDA sees no GPU" in str(why_not("tensorrt"))


def test_standin_refuses_what_the_bindings_refuse() -> None:
    config = standin.IBuilderConfig()
    with pytest.raises(AssertionError, match="takes"):
        config.set_timing_cache(standin.ITimingCache())
    with pytest.raises(AttributeError):
        config.set_flag("FP16")
