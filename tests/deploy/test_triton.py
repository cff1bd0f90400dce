"""A bundle as a Triton repository, and the client against a server that runs it in ONNX Runtime."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import OnnxSession, open_sessions
from mca_perception.deploy.triton_repository import MARKER, model_configuration, model_name, write_repository
from mca_perception.errors import BundleError
from mca_perception.pipeline import PerceptionPipeline
from tests.support.bundles import draw_tote, write_colour_bundle, write_two_headed_bundle

WIRE = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


class ServerError(Exception):
    pass


class Tensor:
    """`InferInput`: name, shape and type are checked against the array."""

    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype
        self.array: Any = None

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        assert list(array.shape) == self.shape
        assert WIRE[array.dtype.name] == self.datatype
        self.array = array


class Server:
    """`InferenceServerClient` with a repository on disk behind it."""

    repository: Path
    down = False

    def __init__(self, url: str) -> None:
        assert url == "localhost:8001"

    def is_model_ready(self, model: str) -> bool:
        if self.down:
            raise ServerError("connection refused")
        return (self.repository / model).is_dir()

    def get_model_metadata(self, model: str) -> Any:
        session = self._session(model)
        parts = [
            [types.SimpleNamespace(name=t.name, datatype=WIRE[t.dtype]) for t in side]
            for side in (session.inputs, session.outputs)
        ]
        return types.SimpleNamespace(inputs=parts[0], outputs=parts[1])

    def infer(self, model: str, inputs: list[Tensor]) -> Any:
        if self.down:
            raise ServerError("connection lost")
        found = self._session(model).run({tensor.name: tensor.array for tensor in inputs})
        return types.SimpleNamespace(as_numpy=found.__getitem__)

    def async_infer(self, model: str, inputs: list[Tensor], callback: Any) -> None:
        try:
            callback(self.infer(model, inputs), None)
        except ServerError as error:
            callback(None, error)

    def close(self) -> None:
        pass

    def _session(self, model: str) -> OnnxSession:
        return OnnxSession(self.repository / model / "1" / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture
def server(bundle, tmp_path, monkeypatch) -> type[Server]:
    write_repository(bundle, tmp_path / "repository")
    client = types.ModuleType("tritonclient.grpc")
    vars(client).update(InferenceServerClient=Server, InferInput=Tensor, InferenceServerException=ServerError)
    package = types.ModuleType("tritonclient")
    vars(package)["grpc"] = client
    grpc = types.ModuleType("grpc")
    for name, module in (("tritonclient", package), ("tritonclient.grpc", client), ("grpc", grpc)):
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Server, "repository", tmp_path / "repository", raising=False)
    return Server


def test_configuration_states_types_batching_and_device(bundle, tmp_path) -> None:
    text = model_configuration(bundle, "backbone")
    assert f'name: "colours_{bundle.fingerprint}_backbone"' in text
    assert 'input [ { name: "images" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] } ]' in text
    assert "max_batch_size: 64" in text
    assert "dynamic_batching { max_queue_delay_microseconds: 2000 }" in text
    assert "kind: KIND_CPU" in model_configuration(bundle, "backbone", device="cpu")
    cascade = model_configuration(write_two_headed_bundle(tmp_path / "two"), "cascade")
    assert "max_batch_size: 0" in cascade  # its outputs are boxes, not a batch
    assert "dims: [ -1, 28, 28 ]" in cascade
    assert "dynamic_batching" not in cascade


def test_repository_is_replaced_but_nothing_else_is(bundle, tmp_path) -> None:
    names = write_repository(bundle, tmp_path / "repository")
    assert names == [model_name(bundle, graph) for graph in bundle.manifest.graphs]
    (tmp_path / "repository" / names[0] / "1" / "model.onnx").unlink()
    write_repository(bundle, tmp_path / "repository")
    assert (tmp_path / "repository" / names[0] / "1" / "model.onnx").is_file()
    (tmp_path / "repository" / MARKER).unlink()
    with pytest.raises(BundleError, match="not a repository written by this command"):
        write_repository(bundle, tmp_path / "repository")


def test_pipeline_runs_on_the_server(bundle, server) -> None:
    image, _ = draw_tote((256, 320), {"red": (0.1, 0.1, 0.4, 0.4), "blue": (0.5, 0.5, 0.9, 0.9)})
    found = PerceptionPipeline.from_bundle(bundle.path, session="triton").perceive(image)
    expected = PerceptionPipeline.from_bundle(bundle.path, session="onnxruntime-cpu").perceive(image)
    np.testing.assert_allclose(found.boxes, expected.boxes)
    np.testing.assert_allclose(found.embeddings, expected.embeddings)


def test_requests_may_be_on_their_way_together(bundle, server, monkeypatch) -> None:
    session = open_sessions(bundle, graphs=["backbone"], session="triton")["backbone"]
    images = {"images": np.ones((1, 3, 32, 32), np.float32)}
    futures = [session.submit(images) for _ in range(3)]
    assert all(future.result(10)["features"].shape == (1, 5, 3) for future in futures)
    monkeypatch.setattr(Server, "down", True)
    with pytest.raises(BundleError, match="connection lost"):
        session.submit(images).result(10)
    with pytest.raises(BundleError, match=r"did not run colours_.*connection lost"):
        session.run(images)
    session.close()


def test_server_that_is_down_or_serves_something_else_is_refused(
    bundle, server, monkeypatch, tmp_path
) -> None:
    path = server.repository / model_name(bundle, "backbone") / "1" / "model.onnx"
    path.write_bytes(bundle.path_of("identification").read_bytes())
    with pytest.raises(BundleError, match="serves another colours_"):
        open_sessions(bundle, graphs=["backbone"], session="triton")
    monkeypatch.setattr(Server, "repository", tmp_path)
    with pytest.raises(BundleError, match=r"does not serve colours_.*--target triton"):
        open_sessions(bundle, graphs=["backbone"], session="triton")
    monkeypatch.setattr(Server, "down", True)
    with pytest.raises(BundleError, match="does not answer"):
        open_sessions(bundle, graphs=["backbone"], session="triton")
