"""One small data set of each kind, made once per test process."""

from pathlib import Path
from typing import Any

import pytest

from mca_perception.datasets.synth.pick_set import PickSettings, write_picks
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes

SCENES, PICKS = 24, 14


@pytest.fixture(scope="package")
def tote_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of the mixed subset of a data set, and its figures."""
    out = tmp_path_factory.mktemp("totes")
    figures = write_totes(ToteSettings(out, SCENES, seed=11, products=40), workers=1)
    return out / "mix-object-tote", figures


@pytest.fixture(scope="package")
def pick_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of a set of picks, and its figures."""
    out = tmp_path_factory.mktemp("picks")
    figures = write_picks(PickSettings(out, PICKS, seed=11, products=48, test_fraction=0.4), workers=1)
    return out, figures
