from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.session import OnnxSession, open_sessions
from mca_perception.errors import BundleError
from tests.support.bundles import bundle_files, manifest_fields, write_colour_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


@pytest.mark.parametrize(("count", "height", "width"), [(1, 32, 48), (5, 16, 16), (2, 64, 32)])
def test_graph_runs_with_any_batch_and_size(bundle, count, height, width) -> None:
    session = OnnxSession(bundle.path_of("backbone"), intra_op_threads=1)
    images = np.random.default_rng(0).normal(size=(count, 3, height, width)).astype(np.float32)
    features = session.run({"images": images})["features"]
    assert features.shape == (count, 1 + height * width // 256, 3)
    np.testing.assert_allclose(features[:, 0], images.mean(axis=(2, 3)), atol=1e-5)


def test_every_graph_of_a_bundle_is_opened(bundle) -> None:
    sessions = open_sessions(bundle, providers=["CPUExecutionProvider"])
    assert set(sessions) == {"backbone", "segmentation", "identification"}
    assert sessions["backbone"].providers == ("CPUExecutionProvider",)
    assert sessions["segmentation"].input_names == ("features", "images")


def test_arrays_need_not_be_contiguous(bundle) -> None:
    session = OnnxSession(bundle.path_of("identification"))
    features = np.asfortranarray(np.ones((2, 3, 3), np.float32))
    assert session.run({"features": features})["embeddings"].shape == (2, 4)


@pytest.mark.parametrize("names", [[], ["image"], ["images", "more"]])
def test_other_input_names_are_refused(bundle, names) -> None:
    session = OnnxSession(bundle.path_of("backbone"))
    with pytest.raises(ValueError, match="the graph takes"):
        session.run({name: np.zeros((1, 3, 16, 16), np.float32) for name in names})


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_file_that_is_no_graph_is_refused(tmp_path: Path, content) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot load"):
        OnnxSession(tmp_path / "x.onnx")


def test_missing_file_and_provider_are_refused(bundle, tmp_path) -> None:
    with pytest.raises(BundleError, match="cannot load"):
        OnnxSession(tmp_path / "absent.onnx")
    with pytest.raises(BundleError, match="NoSuchProvider is not available"):
        OnnxSession(bundle.path_of("backbone"), providers=["NoSuchProvider", "CPUExecutionProvider"])


def test_graph_that_contradicts_the_manifest_is_refused(tmp_path) -> None:
    text = json.dumps(manifest_fields()).replace('"name": "embeddings"', '"name": "vectors"')
    bundle = write_bundle(tmp_path / "wrong", json.loads(text), bundle_files())
    with pytest.raises(BundleError, match="'identification' has other inputs or outputs"):
        open_sessions(bundle)
