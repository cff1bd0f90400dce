"""The cascade as one graph: the detections of training's code, and ONNX Runtime's the same as torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mca_perception.backbone import create_backbone, normalise
from mca_perception.datasets.coco import CocoSplit
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.deploy.export import export_graph
from mca_perception.deploy.session import OnnxSession
from mca_perception.errors import RecipeError
from mca_perception.geometry import Letterbox
from mca_perception.segmentation.cascade.config import NANO
from mca_perception.segmentation.cascade.detector import CascadeHead
from mca_perception.segmentation.cascade.graph import (
    OUTPUTS,
    CascadeGraph,
    largest_detection_difference,
    onnx_translations,
)

SIZE = (64, 80)
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def head() -> CascadeHead:
    """Random weights whose scores differ from box to box and whose stages move the boxes, as trained ones do."""
    torch.manual_seed(0)
    head = CascadeHead(192, replace(NANO, labels=("Object", "Tote"))).eval()
    deviations = {"objectness": 0.1, "codes": 0.02, "classify": 0.6, "regress": 0.01}
    for name, module in head.named_modules():
        if (deviation := deviations.get(name.rpartition(".")[2])) is not None:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            nn.init.normal_(module.weight, std=deviation)
    return head


@pytest.fixture(scope="module")
def totes(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """Backbone features ``[1, 1 + T, D]`` of three synthesised totes."""
    folder = tmp_path_factory.mktemp("totes")
    write_totes(ToteSettings(folder, 3, 3, products=12, split="test=1.0", objects="2-5"), 1)
    torch.manual_seed(1)
    backbone = create_backbone("beit3_nano_patch16", img_size=64, depth=1).eval()
    features = []
    for record in CocoSplit.open(folder, subset="mix-object-tote", split="test").records:
        image = record.read()
        pixels = torch.from_numpy(Letterbox.fit(image.shape[:2], SIZE).apply(image)).permute(2, 0, 1)
        with torch.no_grad():
            features.append(
                backbone(normalise(pixels[None], torch.device("cpu"), backbone.normalisation))["encoder_out"]
            )
    return features


def run(graph: CascadeGraph, features: Tensor, threshold: float) -> Arrays:
    with torch.no_grad():
        found = graph(features, torch.tensor([threshold]))
    return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, found, strict=True)}


@pytest.mark.parametrize("threshold", [0.05, 0.45, 0.6, 1.0])
def test_detections_are_those_of_training(head: CascadeHead, totes: list[Tensor], threshold: float) -> None:
    selection = replace(head.config.selection, score_threshold=threshold)
    regions = head.heads.regions
    regions.config = replace(head.config, selection=selection)
    found = [run(CascadeGraph(head, SIZE), features, threshold) for features in totes]
    for features, arrays in zip(totes, found, strict=True):
        [expected] = head.detect(features, SIZE)
        wanted = {name: getattr(expected, name).numpy() for name in OUTPUTS}
        assert largest_detection_difference(wanted, arrays) < 1e-3
        assert (np.diff(arrays["scores"]) <= 0).all()
    regions.config = head.config
    assert any(len(arrays["scores"]) for arrays in found) == (threshold < 1)


def test_higher_threshold_gives_the_better_of_the_same_detections(
    head: CascadeHead, totes: list[Tensor]
) -> None:
    graph = CascadeGraph(head, SIZE)
    low, high = run(graph, totes[0], 0.3), run(graph, totes[0], 0.5)
    count = int((low["scores"] > 0.5).sum())
    assert 0 < count < len(low["scores"])
    for name in OUTPUTS:
        np.testing.assert_allclose(high[name], low[name][:count], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_onnx_runtime_finds_the_same(head: CascadeHead, totes: list[Tensor], tmp_path: Path) -> None:
    """Boxes within half a pixel, scores and mask probabilities within 0.001, for every detection of every tote."""
    graph = CascadeGraph(head, SIZE)
    inputs = {"features": totes[0], "score_threshold": torch.zeros(1)}
    path = tmp_path / "cascade.onnx"
    entry = export_graph(
        graph,
        inputs,
        OUTPUTS,
        path,
        dynamic_shapes={name: {} for name in inputs},
        translations=onnx_translations(),
    )
    assert [tensor["name"] for tensor in entry["outputs"]] == list(OUTPUTS)
    assert path.stat().st_size < 10_000_000
    session = OnnxSession(path, providers=["CPUExecutionProvider"], intra_op_threads=1)
    for features in totes:
        for threshold in (0.0, 0.5, 1.0):
            expected = run(graph, features, threshold)
            found = session.run(
                {"features": features.numpy(), "score_threshold": np.array([threshold], np.float32)}
            )
            assert (len(expected["scores"]) > 0) == (threshold < 1)
            assert largest_detection_difference(expected, found) < 1e-3


def test_what_onnx_cannot_express_is_refused() -> None:
    soft = replace(NANO, selection=replace(NANO.selection, nms="soft"))
    with pytest.raises(RecipeError, match="nms: hard"):
        CascadeGraph(CascadeHead(32, soft), SIZE)


def change(name: str, row: int, value: float) -> Callable[[Arrays], Arrays]:
    def changed(arrays: Arrays) -> Arrays:
        array = arrays[name].copy()
        array[row] += value
        return {**arrays, name: array}

    return changed


@pytest.mark.parametrize(
    ("other", "ties", "expected"),
    [
        (lambda arrays: {name: array[::-1] for name, array in arrays.items()}, 0.0, 0.0),
        (change("scores", 2, 5e-4), 0.0, 5e-4),
        (change("masks", 1, 0.25), 0.0, 0.25),
        (change("scores", 2, 5e-3), 0.0, np.inf),
        (change("boxes", 0, 0.4), 0.0, 0.0),
        (change("boxes", 0, 0.6), 0.0, np.inf),
        (change("boxes", 0, 0.6), 0.1, 0.0),
        (change("labels", 3, 1), 0.0, np.inf),
        (lambda arrays: {name: array[1:] for name, array in arrays.items()}, 0.0, np.inf),
        (lambda arrays: {name: array[1:] for name, array in arrays.items()}, 0.1, 0.0),
        (lambda arrays: {name: array[2:] for name, array in arrays.items()}, 0.1, np.inf),
        (lambda arrays: {name: array[:0] for name, array in arrays.items()}, 0.1, np.inf),
    ],
)
def test_difference_of_detections(other: Callable[[Arrays], Arrays], ties: float, expected: float) -> None:
    places = np.arange(10, dtype=np.float32)
    arrays: Arrays = {
        "scores": 0.9 - places / 20,
        "labels": np.zeros(10, np.int64),
        "boxes": np.stack([places, places, places + 9, places + 9], axis=1),
        "masks": np.full((10, 28, 28), 0.5, np.float32),
    }
    assert largest_detection_difference(arrays, other(arrays), ties=ties) == pytest.approx(expected, abs=1e-6)
