"""The embedded model for scenes of another size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.cli.main import main
from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.totes import render_scene
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import BundleError
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.training.resizing import resize_bundle
from tests.support.bundles import write_colour_bundle


@pytest.fixture(scope="module")
def nano(repository: Path) -> ModelBundle:
    return ModelBundle.open(repository / "models" / "nano")


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mca", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.slow
def test_scenes_are_seen_at_the_new_size(nano: ModelBundle, tmp_path: Path, monkeypatch) -> None:
    assert run(monkeypatch, nano.path, "--input-size", "480x384", "--out", tmp_path / "large") == 0
    large = ModelBundle.open(tmp_path / "large")
    spec = large.manifest.segmentation
    assert spec is not None
    assert spec.input_size == (384, 480)
    assert spec.calibrated_on.endswith("at 320 x 256")
    assert not large.manifest.metrics
    for name in ("backbone", "identification"):
        assert large.path_of(name).read_bytes() == nano.path_of(name).read_bytes()
    scene = render_scene(Catalogue(5, 60), 5, 0).image
    before, after = (PerceptionPipeline.from_bundle(b.path).perceive(scene) for b in (nano, large))
    assert len(after) >= len(before) / 2
    assert after.instance_mask is not None
    assert after.instance_mask.shape == scene.shape[:2]
    eager = PerceptionPipeline.from_bundle(large.path, session="torch").perceive(scene)
    np.testing.assert_allclose(eager.boxes, after.boxes, atol=0.5)


@pytest.mark.parametrize("size", [(250, 320), (16, 320), (256, 4096)])
def test_sizes_that_the_patches_do_not_fit_are_refused(nano: ModelBundle, tmp_path: Path, size) -> None:
    with pytest.raises(BundleError, match="sides must be multiples of 16 from 32 to 2048"):
        resize_bundle(nano, size, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_a_bundle_without_weights_is_refused(tmp_path: Path) -> None:
    bundle = write_colour_bundle(tmp_path / "colours")
    with pytest.raises(BundleError, match="colours"):
        resize_bundle(bundle, (256, 320), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input-size", "large"], "'large' is no width and height"),
        (["--input-size", "640x512", "--precision", "fp16"], "export for another size first"),
        (["--input-size", "640x512", "--add-head", "run"], "export for another size first"),
    ],
)
def test_options_that_do_not_go_together(nano, tmp_path, monkeypatch, capsys, options, message) -> None:
    assert run(monkeypatch, nano.path, *options, "--out", tmp_path / "out") == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
