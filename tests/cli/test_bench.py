from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mca_perception.cli.main import main
from tests.support.bundles import write_colour_bundle


def test_pipeline_benchmark_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    bundle = write_colour_bundle(tmp_path / "colours")
    script = repository / "benchmarks" / "pipeline.py"
    options = ["--model", bundle.path, "--out", tmp_path / "out", "--runs", "2", "--sizes", "640x512"]
    subprocess.run([sys.executable, script, *options], check=True, timeout=150, cwd=repository)
    (path,) = (tmp_path / "out").glob("pipeline-*.json")
    figures = json.loads(path.read_text())
    assert figures["model"]["fingerprint"] == bundle.fingerprint
    assert len(figures["input_sha256"]) == 64
    assert set(figures["sizes"]) == {"640x512"}
    assert len(figures["sizes"]["640x512"]["total_ms_by_run"]) == 2
    assert {"device", "versions", "seed", "created"} <= set(figures)


def test_unknown_benchmark_ends_with_two(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["mca", "bench", "--only", "nothing", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert re.search(r"there are: .*\bpipeline\b", capsys.readouterr().err)
