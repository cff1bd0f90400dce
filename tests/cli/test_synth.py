import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mca_perception.cli.main import main
from mca_perception.cli.synth import app


def test_totes_writes_a_set_and_prints_its_figures(tmp_path: Path) -> None:
    options = ["--count", "1", "--products", "4", "--workers", "1", "--split", "test", "--json"]
    result = CliRunner().invoke(app, ["totes", "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    assert figures["scenes"] == 1
    assert (tmp_path / "mix-object-tote" / "test.json").is_file()


def test_picks_writes_a_set_and_prints_its_figures(tmp_path: Path) -> None:
    options = ["--count", "1", "--products", "16", "--workers", "1", "--test-fraction", "0"]
    result = CliRunner().invoke(app, ["picks", "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert "picks_per_second" in result.stdout
    assert len(list((tmp_path / "Picks").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["totes", "--count", "0"], "--count 0: must be 1 to 1,000,000"),
        (["totes", "--count", "1", "--subset", "mixed"], "--subset 'mixed'"),
        (["picks", "--count", "2000000"], "--count 2000000"),
        (["picks", "--count", "1", "--workers", "0"], "--workers 0"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["mca", "synth", *arguments, "--out", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
