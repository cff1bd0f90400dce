"""`mca checkpoint`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mca_perception.backbone import create_beit3, load_checkpoint
from mca_perception.cli.main import main

VISION_PARAMETERS = 3_760_896


@pytest.fixture
def mca(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `mca checkpoint` and return its exit code and what it printed on both streams."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mca", "checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retrieval file of nano size in the official layout."""
    model = create_beit3("beit3_nano_patch16", modalities=("vision", "text"), vocab_size=50)
    tensors = {f"beit3.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("official") / "beit3[retrieval].pth"
    torch.save({"model": tensors | {"logit_scale": torch.tensor(1.0)}}, path)
    return path


def test_inspect_prints_a_table(mca, file: Path) -> None:
    code, printed, _ = mca("inspect", file)
    assert code == 0
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"file {file} ({file.stat().st_size / 1e6:.1f} MB)" in lines
    assert "layout official" in lines
    assert "heads of retrieval" in lines
    assert "backbone beit3_nano_patch16 vocab_size=50" in lines
    assert "image size 224 px, patches of 16" in lines
    assert f"vision expert 167 {VISION_PARAMETERS:,}" in lines
    assert "retrieval head 1 1" in lines


def test_inspect_as_json(mca, file: Path) -> None:
    code, printed, _ = mca("inspect", file, "--json")
    figures = json.loads(printed)
    assert code == 0
    assert figures["parameters"]["vision expert"] == VISION_PARAMETERS
    assert (figures["backbone"], figures["tasks"], figures["modalities"]) == (
        "beit3_nano_patch16",
        ["retrieval"],
        ["vision", "text"],
    )


def test_convert_for_a_vision_model(mca, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ("convert", file, out, "--img-size", 112, "--modalities", "vision", "--dtype", "float16")
    code, printed, _ = mca(*arguments)
    assert code == 0
    assert (
        "wrote vision expert 167 (official layout); position table resized; not used text expert" in printed
    )
    assert not load_checkpoint(create_beit3("beit3_nano_patch16", img_size=112), out).missing
    code, _, message = mca(*arguments)
    assert code == 2
    assert "--force" in message
    code, printed, _ = mca(*arguments, "--force", "--json")
    figures = json.loads(printed)
    assert (code, figures["tensors"], figures["missing"]) == (0, 167, {})
    assert figures["bytes"] == out.stat().st_size


def test_convert_to_shared_attention(mca, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert mca("convert", file, out, "--init-shared-from", "A")[0] == 0
    assert "backbone beit3_nano_patch16 attention=shared" in " ".join(mca("inspect", out)[1].split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere.pth"), "does not exist"),
        (("convert", "FILE", "out.safetensors", "--modalities", "sound"), "holds no sound expert"),
        (("convert", "FILE", "out.pth"), "must end in .safetensors"),
        (
            ("convert", "FILE", "out.safetensors", "--backbone", "beit3_base_patch16"),
            r"(1, 1, 768) in the model",
        ),
        (("convert", "FILE", "out.safetensors", "--dtype", "int8"), "Invalid value for '--dtype'"),
        (("convert", "FILE", "out.safetensors", "--init-shared-from", "C"), "Invalid value"),
    ],
)
def test_bad_input_ends_with_2(
    mca, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, printed = mca(*(file if argument == "FILE" else argument for argument in arguments))
    assert code == 2
    assert message in " ".join(printed.split())
    assert not list(tmp_path.iterdir())


def test_the_installed_command(file: Path) -> None:
    command = [str(Path(sys.executable).with_name("mca")), "checkpoint", "inspect", str(file), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["layout"] == "official"
