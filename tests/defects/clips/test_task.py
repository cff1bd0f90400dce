"""Defect videos from end to end: train two steps, score frame by frame, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mca_perception.cli.main import main
from mca_perception.datasets.synth.defect_clips import write_video
from mca_perception.defects.clips.model import ClipConfig, ClipHead, clip_logits
from mca_perception.errors import DatasetError, RecipeError
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import load_run, run_recipe
from tests.support.defects import pick_id

LABELS = ("nominal", "open", "deconstruction")
RECIPE = """
name: tiny
backbone: {{name: beit3_nano_patch16}}
clips:
  data: {data}
  frames: 3
  frame_size: 32
  hidden_dim: 8
  detail_dim: 8
  repeat_defects: 2
  batch_size: 2
  workers: 0
  validation_fraction: 0.4
optimiser: {{warmup_steps: 1}}
budget: {{max_steps: 2}}
device: cpu
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine short clips to learn from and three to test on; one test video is damaged."""
    root = tmp_path_factory.mktemp("clips")
    (root / "annotations").mkdir()
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(13):
        part = "train" if number < 9 else "test"
        name = pick_id(number, session=number)
        frames = list(rng.integers(0, 255, (4 + number % 3, 28, 37, 3), dtype=np.uint8))
        write_video(root / "videos" / f"{name}.mp4", frames)
        label = LABELS[number % 3]
        entry = {"id": name, "label": label} | ({"first_visible": 1} if label != "nominal" else {})
        (root / "annotations" / f"{name}.json").write_text(json.dumps(entry))
        lists[part].append(name)
    (root / "annotations" / f"{lists['test'][-1]}.json").write_text("{")
    for part, names in lists.items():
        (root / f"{part}.csv").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data))
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / "out")
    return folder / "out"


def test_training_and_evaluation(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(data), "--model", str(run), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["mca", "eval", "armbench-defect-videos", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["clips"] == 3
    assert metrics["data"]["skipped"] == {"annotation missing or not readable": 1}
    assert 0 <= metrics["exact_match"] <= metrics["accuracy"] <= 1
    (point,) = metrics["operating_points"]  # too few held-out clips for a promise
    assert point["promised_fpr"] is None
    assert point["defective"] + point["nominal"] == 3
    assert "exact match" in (tmp_path / "out" / "report.md").read_text()


def test_answers_do_not_depend_on_how_the_stream_is_cut() -> None:
    torch.manual_seed(0)
    head = ClipHead(4, ClipConfig(hidden_dim=8)).eval()
    judgements = torch.randn(2, 7, 5)
    whole, _ = head(judgements)
    first, state = head(judgements[:, :3])
    rest, _ = head(judgements[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole)
    changed = judgements.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(head(changed)[0][:, :5], whole[:, :5])  # nothing depends on later frames


def test_a_clips_logit_is_a_smooth_maximum() -> None:
    logits = torch.tensor([[[-9.0, 0.0], [9.0, 0.0]]])
    found = clip_logits(logits)
    torch.testing.assert_close(
        found, torch.tensor([[9 - np.log(2), 0.0]], dtype=torch.float32), atol=1e-4, rtol=0
    )


def test_what_does_not_fit_is_refused(data: Path, tmp_path: Path, run: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(data=data).replace("batch_size: 2", "batch_size: 99"))
    with pytest.raises(DatasetError, match=r"training and \d+ validation clips for a batch of 99"):
        run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out")
    (tmp_path / "bad.yaml").write_text(RECIPE.format(data=data).replace("frames: 3", "frames: 1"))
    with pytest.raises(RecipeError, match=r"clips\.frames"):
        load_recipe(tmp_path / "bad.yaml")


@pytest.mark.parametrize("with_start", [True, False])
def test_frozen_frames_need_a_head_to_start_from(
    data: Path, tmp_path: Path, run: Path, with_start: bool
) -> None:
    recipe = RECIPE.format(data=data).replace("frames: 3", "frames: 3\n  frozen_frames: true")
    (tmp_path / "recipe.yaml").write_text(recipe + (f"init_from: {run}\n" if with_start else ""))
    if not with_start:
        with pytest.raises(RecipeError, match="frozen_frames needs init_from"):
            load_recipe(tmp_path / "recipe.yaml")
        return
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out")
    before, after = (load_run(folder)[1].state_dict() for folder in (run, tmp_path / "out"))
    frozen = [
        name for name in before if name.startswith(("heads.clips.evidence", "heads.clips.classify_frame"))
    ]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["heads.clips.classify.weight"], after["heads.clips.classify.weight"])
    other = load_recipe(tmp_path / "recipe.yaml", ["clips.detail_dim=16"])
    with pytest.raises(RecipeError, match="a defect head of the same"):
        run_recipe(other, tmp_path / "other")
