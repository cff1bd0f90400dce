"""Packages that torch compiles beforehand: same numbers, taken from the cache, and refused with reasons."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.engine_cache import EngineCache
from mca_perception.deploy.session import SessionOptions, open_sessions
from mca_perception.errors import BundleError
from mca_perception.training import torch_packages
from tests.support.bundles import write_colour_bundle


@pytest.fixture
def nano(repository: Path) -> ModelBundle:
    return ModelBundle.open(repository / "models" / "nano", verify=False)


def test_what_cannot_be_compiled_is_refused(nano: ModelBundle, tmp_path: Path, monkeypatch) -> None:
    options = SessionOptions(cache=EngineCache(tmp_path / "cache"), build=False)

    def refused(bundle: ModelBundle, reason: str, options: SessionOptions = options) -> None:
        with pytest.raises(BundleError, match=reason):
            open_sessions(bundle, graphs=["identification"], session="torch-package", options=options)

    refused(write_colour_bundle(tmp_path / "colours"), "cannot be built again from the manifest's recipe")
    refused(nano, r"no package of identification\.onnx in .*cache; open it with")
    monkeypatch.setattr(torch_packages.shutil, "which", lambda name: None)
    refused(nano, "which would compile it, is not installed", SessionOptions(cache=options.cache))
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_a_package_gives_the_same_numbers_and_is_compiled_once(
    nano: ModelBundle, tmp_path: Path, monkeypatch
) -> None:
    options = SessionOptions(cache=EngineCache(tmp_path / "cache"), threads=1, parallel=2)

    def opened(name: str) -> torch_packages.PackageSession:
        return open_sessions(nano, graphs=["identification"], session=name, options=options)["identification"]

    first, module = opened("torch-package"), opened("torch")
    monkeypatch.setattr(torch_packages.shutil, "which", lambda name: None)
    again = opened("torch-package")  # no compiler is needed any more
    (features,) = nano.manifest.graphs["identification"].inputs
    tokens = (nano.manifest.identification.crop_size // nano.manifest.backbone.patch_size) ** 2 + 1
    rng = np.random.default_rng(0)
    batches = [
        {"features": rng.normal(size=(count, tokens, features.shape[2])).astype(np.float32)}
        for count in (1, 2, 5, 64)
    ]
    expected = [module.run(batch)["embeddings"] for batch in batches]
    with ThreadPoolExecutor(3) as threads:
        for session in (first, again):
            found = list(threads.map(session.run, batches))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one["embeddings"], other, atol=1e-5)
    with pytest.raises(ValueError, match="no package was compiled for"):
        again.run({"features": np.zeros((65, tokens, features.shape[2]), np.float32)})
