"""Loading weights: the official layout, resized positions, refusals that name the first difference."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mca_perception.backbone import CheckpointError, create_backbone, load_checkpoint

NAME = "beit3_nano_patch16"


def official_layout(img_size: int = 224, **overrides: int) -> dict[str, torch.Tensor]:
    """A state dict as the official fine-tuning code writes it: prefix, text expert and heads included."""
    vision = create_backbone(NAME, img_size=img_size, **overrides).state_dict()
    tensors = {f"beit3.{key}": value for key, value in vision.items()}
    tensors |= {
        f"beit3.{key.replace('.A.', '.B.')}": value.clone() for key, value in vision.items() if ".A." in key
    }
    tensors["beit3.text_embed.weight"] = torch.zeros(10, 192)
    tensors["vision_head.weight"] = torch.zeros(192, 192)
    return tensors


@pytest.mark.parametrize("wrapper", ["model", "module", None])
def test_official_layout_loads(tmp_path: Path, wrapper: str | None) -> None:
    tensors = official_layout()
    torch.save({wrapper: tensors} if wrapper else tensors, tmp_path / "beit3.pth")
    model = create_backbone(NAME)
    report = load_checkpoint(model, tmp_path / "beit3.pth")
    assert not report.missing
    assert not report.positions_resized
    assert set(report.unexpected) == {"text expert", "heads"}
    assert all(torch.equal(value, tensors[f"beit3.{key}"]) for key, value in model.state_dict().items())


def test_safetensors_and_a_larger_grid(tmp_path: Path) -> None:
    save_file(official_layout(), tmp_path / "weights.safetensors")
    model = create_backbone(NAME, img_size=384)
    report = load_checkpoint(model, tmp_path / "weights.safetensors")
    assert report.positions_resized
    assert model.encoder.embed_positions["A"].weight.shape == (24 * 24 + 3, 192)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def _write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": _Code()}))


def _write_truncated(path: Path) -> None:
    torch.save(official_layout(), path)
    path.write_bytes(path.read_bytes()[:100_000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (_write_pickle, "tensors only"),
        (_write_truncated, "cannot be read"),
        (lambda path: torch.save({"model": {"a": 1}}, path), "table of tensors"),
        (lambda path: torch.save({"fc.weight": torch.zeros(3)}, path), "no BEiT-3 vision weights"),
        (
            lambda path: torch.save(official_layout(embed_dim=384, num_heads=6), path),
            r"mask_token is \(1, 1, 384\)",
        ),
        (lambda path: torch.save(official_layout(depth=6), path), "6 encoder layers, the model 8"),
        (lambda path: torch.save(official_layout(depth=10), path), "10 encoder layers, the model 8"),
    ],
)
def test_malformed_files_are_refused_and_change_nothing(
    tmp_path: Path, write: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "file.pth")  # type: ignore[operator]
    model = create_backbone(NAME)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, tmp_path / "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "never run" not in capsys.readouterr().out
