"""The backbone's graph, whatever recipe it comes from, runs at every image size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from mca_perception.backbone.config import CONFIGS
from mca_perception.training.graphs import export_graphs
from mca_perception.training.model import build
from mca_perception.training.recipe import load_recipe
from tests.support.labelled_images import write_colour_classes
from tests.support.pretraining import TINY

RECIPE = """
name: tiny
backbone: {{name: beit3_tiny, img_size: 64}}
classification:
  data: {data}
  method: {{name: clce}}
  validation_fraction: 0.34
  image_size: 32
  batch_size: 4
budget: {{max_steps: 1}}
"""


def test_a_backbone_without_segmentation_runs_at_other_sizes_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "beit3_tiny", replace(TINY, modalities=("vision",)))
    write_colour_classes(tmp_path / "data", classes=2)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(data=tmp_path / "data"))
    recipe = load_recipe(path)
    torch.manual_seed(0)
    model, _ = build(recipe)
    export_graphs(recipe, model.eval(), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "backbone.onnx"))
    for size in ((32, 32), (64, 64), (80, 64), (48, 96)):
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            expected = model.backbone(images)["encoder_out"]
        (found,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4), size
