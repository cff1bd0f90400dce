"""The public layout from end to end: train two steps, export, calibrate, inspect, evaluate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mca_perception.cli.main import main
from mca_perception.datasets.armbench_defects import read_defect_images
from mca_perception.defects.model import ImageEvidence
from mca_perception.defects.scores import Answer
from mca_perception.defects.task import DefectTask
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import BundleError, CalibrationError, RecipeError
from mca_perception.pipeline.defect_evaluation import calibrate_thresholds
from mca_perception.pipeline.inspection import DefectInspector
from mca_perception.training.checkpoints import load_shared_weights
from mca_perception.training.defect_bundling import add_defects
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import load_recipe
from mca_perception.training.run import load_run, run_recipe
from tests.support.defects import write_defect_set, write_view

pytestmark = pytest.mark.xdist_group("defects")
RECIPE = """
name: tiny
init_from: {base}
backbone: {{name: {backbone}, freeze: true}}
defects:
  data: {data}
  crop_size: {crop_size}
  margin: {margin}
  hidden_dim: 16
  queries: 2
  blocks: 1
  token_dim: 16
  detail_dim: 8
  batch_size: 4
  views: 3
  workers: 0
  calibration_fraction: 0.4
  validation_fraction: 0.2
  fpr: [0.5, 0.01]
optimiser: {{warmup_steps: 1}}
budget: {{max_steps: 2}}
device: cpu
"""


@pytest.fixture(scope="module")
def base(repository: Path) -> ModelBundle:
    """The embedded model: its backbone is what the head is trained on."""
    return ModelBundle.open(repository / "models" / "nano")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with the oddities of the public one."""
    root = write_defect_set(tmp_path_factory.mktemp("defects") / "set", train=60, test=12)
    names = (root / "train.csv").read_text().split()
    write_view(root / "data" / names[0], "9", polygon=[])
    write_view(root / "data" / names[1], "9", label="unheard_of")
    write_view(root / "data" / names[2], "9").with_suffix(".jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def run(data: Path, base: ModelBundle) -> Path:
    """A finished run of two steps on the frozen backbone of the embedded model."""
    recipe = data.parent / "tiny.yaml"
    section = base.manifest.identification
    fields = {
        "crop_size": section.crop_size,
        "margin": section.margin,
        "backbone": base.manifest.backbone.name,
    }
    recipe.write_text(RECIPE.format(data=data, base=base.path, **fields))
    out = data.parent / "run"
    state = run_recipe(load_recipe(recipe), out)
    assert state.step == 2
    assert {"defects/image_recall@fpr0.01", "defects/pick_average_precision"} <= set(state.metrics)
    return out


@pytest.fixture(scope="module")
def bundle(run: Path, base: ModelBundle) -> ModelBundle:
    return add_defects(base, run, run.parent / "bundle")


@pytest.fixture
def mca(monkeypatch, capsys):
    """Run `mca` and return its exit code and what it printed on both streams."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


def test_training_validation_and_calibration_share_no_session(run: Path) -> None:
    _, _, (task,), _ = load_run(run)
    assert isinstance(task, DefectTask)
    parts = [
        {pick.session for pick in picks} for picks in (task.dataset.picks, task.validation, task.calibration)
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert task.skipped["train"]["image with a label outside the set"] == 1


def test_batches_hold_one_to_three_views(run: Path) -> None:
    _, _, (task,), _ = load_run(run)
    batch = next(iter(task.batches(1)))
    assert batch.views.shape[:3] == (4, 3, 3)
    assert batch.present.any(dim=1).all()
    assert (batch.labels[~batch.present] == 0).all()
    assert ((batch.labels > 0).any(dim=1) == (batch.label > 0)).all()


def test_frozen_backbone_gets_no_gradient(run: Path) -> None:
    _, model, (task,), _ = load_run(run)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    losses = task.losses(model.backbone, next(iter(task.batches(2))), torch.device("cpu"))
    sum(losses.values()).backward()
    assert set(losses) == {"image", "pick"}
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert task.head.views.pool.scores.weight.grad.abs().sum() > 0


def test_bundle_says_how_thresholds_were_found(bundle: ModelBundle) -> None:
    spec = bundle.manifest.defects
    assert spec is not None
    assert {point.unit for point in spec.operating_points} == {"image", "pick"}
    assert {point.fpr for point in spec.operating_points} == {0.5}  # for 1 % there are far too few
    assert "exact binomial" in spec.calibration["method"]
    assert "sessions kept" in spec.calibrated_on
    assert spec.calibration["pick"]["nominal"] == spec.points("pick")[0].negatives
    assert str(bundle.path.parent) not in (bundle.path / "manifest.json").read_text()


def test_a_clip_head_starts_from_a_bundles_defect_head(bundle: ModelBundle, run: Path) -> None:
    _, trained, (task,), _ = load_run(run)
    clips = torch.nn.Module()
    clips.evidence = ImageEvidence(trained.backbone.embed_dim, task.config)
    assert load_shared_weights(bundle.path, PerceptionModel(trained.backbone, {"clips": clips})) == []
    for found, expected in zip(clips.evidence.parameters(), task.head.evidence.parameters(), strict=True):
        assert torch.equal(found, expected.half().float())


def test_the_branch_for_details_makes_the_graph_take_crops_too(bundle: ModelBundle) -> None:
    inputs = {tensor.name: tuple(tensor.shape) for tensor in bundle.manifest.graphs["defects"].inputs}
    spec = bundle.manifest.defects
    assert spec is not None
    side = spec.crop_size
    assert inputs == {"features": ("N", (side // 16) ** 2 + 1, 192), "images": ("N", 3, side, side)}


def test_graphs_repeat_the_model(bundle: ModelBundle, run: Path, data: Path) -> None:
    _, model, (task,), _ = load_run(run)
    model.eval()
    picks = read_defect_images(data).test[:5]
    expected = task.logits(model.backbone, torch.device("cpu"), picks)
    inspector = DefectInspector.from_bundle(bundle.path)
    crops = np.stack([inspector.crop(*_image_and_mask(view)) for pick in picks for view in pick.views])
    logits, evidence = inspector.judge_crops(crops)
    np.testing.assert_allclose(logits, expected["image"].logits, atol=2e-2)  # weights are stored as float16
    found = inspector.judge_views(list(evidence.reshape(5, 3, -1)))
    np.testing.assert_allclose(found, expected["pick"].logits, atol=2e-2)


def _image_and_mask(view):
    from mca_perception.datasets.images import read_rgb

    image = read_rgb(view.image)
    return image, view.mask(*image.shape[:2])


def test_answer_of_a_pick_does_not_depend_on_order_or_absent_views(bundle: ModelBundle) -> None:
    inspector = DefectInspector.from_bundle(bundle.path)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 16)).astype(np.float32)
    alone = inspector.judge_views([rows])
    beside = inspector.judge_views([rows[::-1], rng.normal(size=(7, 16)).astype(np.float32)])
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)


def test_inspection_follows_the_operating_point(bundle: ModelBundle) -> None:
    inspector = DefectInspector.from_bundle(bundle.path)
    side = inspector.settings.crop_size
    crops = np.random.default_rng(1).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
    found = inspector.inspect(crops, fpr=0.5, last_view=True)
    alarm = found.scores["combined"] > found.point.threshold
    assert found.answer is (Answer.ALARM if alarm else Answer.NOMINAL)
    assert found.image_scores.shape == (2,)
    with pytest.raises(BundleError, match=r"calibrated for the false-positive rates 0\.5, not 0\.01"):
        inspector.inspect(crops, fpr=0.01)


def test_heat_map_covers_the_crop(bundle: ModelBundle) -> None:
    inspector = DefectInspector.from_bundle(bundle.path)
    side = inspector.settings.crop_size
    heat = inspector.heat_map(np.random.default_rng(2).integers(0, 255, (side, side, 3), dtype=np.uint8))
    assert heat.shape == (side, side)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_too_few_negatives_are_refused_with_their_number(bundle: ModelBundle, data: Path) -> None:
    inspector = DefectInspector.from_bundle(bundle.path)
    index = read_defect_images(data)
    with pytest.raises(CalibrationError, match="299 are needed"):
        calibrate_thresholds(inspector, index, 0.01, 0.95, part="all")


def test_calibrate_and_evaluate_from_the_command_line(
    mca, bundle: ModelBundle, data: Path, tmp_path: Path
) -> None:
    code, printed, _ = mca(
        *(
            "calibrate",
            "thresholds",
            "--data",
            data,
            "--model",
            bundle.path,
            "--out",
            tmp_path / "calibrated",
        ),
        *("--fpr", "0.2", "--confidence", "0.9", "--part", "train"),
    )
    assert code == 0
    assert "with 0.9 confidence" in printed
    calibrated = ModelBundle.open(tmp_path / "calibrated")
    assert calibrated.fingerprint == bundle.fingerprint
    point = calibrated.manifest.defects.points("pick")[0]
    assert (point.fpr, point.confidence) == (0.2, 0.9)
    card = (calibrated.path / "README.md").read_text(encoding="utf-8")
    assert f"alarm above {point.threshold:.4f}: at most 20.0% of nominal ones do, with confidence 90%" in card
    code, printed, _ = mca(
        "eval", "armbench-defects", "--data", data, "--model", calibrated.path, "--out", tmp_path / "out"
    )
    assert code == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["recall@fpr0.01"]) == {"multi_pick", "package_defect", "combined"}
    assert metrics["promised_fpr"] == 0.2
    assert 0 <= metrics["measured_fpr"] <= 1
    assert metrics["official"]["picks"] == 12
    assert metrics["official"]["pick"]["count"] == 12
    assert metrics["all_sessions_unseen"] is True
    assert metrics["skipped"]["image with a label outside the set"] == 1
    assert set(metrics["official"]["by_views"]) == {"1", "2", "3"}
    assert str(tmp_path) not in (tmp_path / "out" / "metrics.json").read_text()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "At the calibrated threshold" in report
    for name in ("roc.png", "precision_recall.png", "contact_sheet.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("identification={data: x, crop_size: 16}", RecipeError, "both heads share the crops"),
        ("defects.split=random", RecipeError, "defects.split"),
        ("defects.fpr=high", RecipeError, "defects.fpr"),
        ("budget.monitor=defects/image_recall@fpr0.01", None, ""),
    ],
)
def test_recipe_settings(run: Path, change: str, error: type[Exception] | None, message: str) -> None:
    if error is None:
        assert load_recipe(run.parent / "tiny.yaml", [change]).budget.monitor is not None
        return
    with pytest.raises(error, match=message):
        load_recipe(run.parent / "tiny.yaml", [change])


def test_bundle_without_a_defect_head_is_refused(base: ModelBundle) -> None:
    plain = ModelBundle(base.path, base.manifest.model_copy(update={"defects": None}))
    with pytest.raises(BundleError, match="no defect head"):
        DefectInspector(plain, {})


def test_other_crops_than_the_bundle_identifies_by_are_refused(run: Path, base: ModelBundle) -> None:
    section = base.manifest.identification.model_copy(update={"crop_size": 224})
    other = ModelBundle(base.path, base.manifest.model_copy(update={"identification": section}))
    with pytest.raises(RecipeError, match=r"set defects\.crop_size to 224"):
        add_defects(other, run, run.parent / "other")
