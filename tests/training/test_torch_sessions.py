"""The shipped bundle as PyTorch modules: the same features and detections as its graphs in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mca_perception.backbone import create_backbone
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.export import export_graph
from mca_perception.deploy.session import OnnxSession, open_sessions
from mca_perception.errors import BundleError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.training.graphs import Features
from tests.support.bundles import write_colour_bundle, write_two_headed_bundle

SEED = 20_000


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check_parity(repository: Path, count: int) -> None:
    """Features within 1e-4 of the largest; detections within 0.5 px and 1e-3 of score, embeddings within 1e-3."""
    torch.set_num_threads(1)
    pipelines = [
        PerceptionPipeline.from_bundle(repository / "models" / "nano", session=name)
        for name in ("onnxruntime-cpu", "torch")
    ]
    catalogue, differing = Catalogue(SEED, 60), []
    for number in range(count):
        image = render_scene(catalogue, SEED, number).image
        tensor = pipelines[0]._to_tensor(image[None, :256, :320])
        found, expected = (p._sessions["backbone"].run({"images": tensor})["features"] for p in pipelines)
        assert relative_error(found, expected) < 1e-4
        for pipeline in pipelines:
            pipeline.inspects = True
        objects, others = (pipeline.perceive(image) for pipeline in pipelines)
        same = len(objects) == len(others) and len(objects) > 0
        same = same and np.abs(objects.boxes - others.boxes).max() <= 0.5
        same = same and np.abs(objects.scores - others.scores).max() <= 1e-3
        same = same and np.abs(objects.embeddings - others.embeddings).max() <= 1e-2
        same = same and np.abs(objects.defects - others.defects).max() <= 1e-2
        if not same:
            differing.append(number)
    assert differing == []


def test_nano_gives_the_same_in_torch_and_onnx_runtime(repository) -> None:
    check_parity(repository, 2)


@pytest.mark.training
@pytest.mark.timeout(1800)
def test_nano_gives_the_same_on_a_hundred_images(repository) -> None:
    check_parity(repository, 100)


@pytest.mark.slow
def test_base_with_random_weights_gives_the_same(tmp_path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = create_backbone("beit3_base_patch16", img_size=224, modalities=("vision",)).eval()
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    path = tmp_path / "base.onnx"
    export_graph(Features(backbone), {"images": images}, ["features"], path, dynamic_shapes={"images": {}})
    with torch.inference_mode():
        expected = Features(backbone)(images).numpy()
    found = OnnxSession(path, providers=["CPUExecutionProvider"], intra_op_threads=1)
    assert relative_error(found.run({"images": images.numpy()})["features"], expected) < 1e-4


def test_what_torch_cannot_run_is_refused(repository, tmp_path) -> None:
    with pytest.raises(BundleError, match="'cascade' cannot be run by torch"):
        open_sessions(write_two_headed_bundle(tmp_path / "two"), graphs=["cascade"], session="torch")
    with pytest.raises(BundleError, match="cannot be built again from the manifest's recipe"):
        open_sessions(write_colour_bundle(tmp_path / "colours"), graphs=["backbone"], session="torch")
    nano = ModelBundle.open(repository / "models" / "nano", verify=False)
    fields = nano.manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    fields = json.loads(json.dumps(fields)) | {"precision": {"kind": "int8", "reference": nano.fingerprint}}
    int8 = write_bundle(tmp_path / "int8", fields, {name: nano.path / name for name in nano.manifest.files})
    with pytest.raises(BundleError, match="computes in int8, its weights file does not"):
        open_sessions(int8, graphs=["backbone"], session="torch")
