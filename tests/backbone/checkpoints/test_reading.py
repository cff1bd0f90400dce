"""Files that are damaged, oversized or no tables of tensors are refused; code in them never runs."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mca_perception.backbone import create_beit3
from mca_perception.backbone.checkpoints import load_checkpoint, reading
from mca_perception.errors import CheckpointError

TENSORS = {"encoder.a.weight": torch.arange(40_000.0)}


class MakesAFile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, (str(self.path),))


def trap(path: Path) -> Path:
    return path.with_name("trapped")


def cut(write: Callable[[Path], None], fraction: float) -> Callable[[Path], None]:
    def write_and_cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])

    return write_and_cut


def rewritten(path: Path, compression: int, change: Callable[[str, bytes], bytes]) -> None:
    """A torch archive with its records changed."""
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


def with_pickle(path: Path, pickled: bytes) -> None:
    """A torch archive whose description of the tensors is ``pickled``."""
    rewritten(path, zipfile.ZIP_STORED, lambda name, data: pickled if name.endswith("data.pkl") else data)


def write_header(path: Path, header: dict[str, object], data: bytes = b"") -> None:
    text = json.dumps(header).encode().ljust(0x280)  # a length that begins like a pickle
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(reading.MAX_FILE_BYTES + 1)


def write_expanded(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder; give the weights file"),
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (lambda path: path.write_text("lr: 0.1\n" * 99), "neither a safetensors nor a torch.save file"),
    "short text": (lambda path: path.write_text("a"), "neither a safetensors nor a torch.save file"),
    "oversized": (write_sparse, "32 GiB, more than 32"),
    "zip cut off": (cut(lambda path: torch.save(TENSORS, path), 0.6), "damaged or cut off"),
    "zip cut to its magic": (lambda path: path.write_bytes(b"PK\x03\x04"), "damaged or cut off"),
    "safetensors cut off": (cut(lambda path: save_file(TENSORS, path), 0.6), "damaged or cut off"),
    "safetensors header cut off": (cut(lambda path: save_file(TENSORS, path), 0.0004), "damaged"),
    "safetensors header too long": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "header claims",
    ),
    "safetensors without tensors": (lambda path: write_header(path, {}), "no tensors"),
    "safetensors outside the file": (
        lambda path: write_header(
            path, {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        ),
        "damaged or cut off",
    ),
    "code": (lambda path: torch.save({"model": MakesAFile(trap(path))}, path), "was not executed"),
    "code beside tensors": (
        lambda path: torch.save({"model": TENSORS, "args": MakesAFile(trap(path))}, path),
        "was not executed",
    ),
    "code inside a namespace": (
        lambda path: torch.save(
            {"model": TENSORS, "args": argparse.Namespace(a=MakesAFile(trap(path)))}, path
        ),
        "was not executed",
    ),
    "bare pickle with code": (
        lambda path: path.write_bytes(pickle.dumps(MakesAFile(trap(path)))),
        "bare pickle",
    ),
    "other class": (lambda path: torch.save({"model": TENSORS, "when": Path("a")}, path), "was not executed"),
    "file of old torch": (
        lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
        "torch before 1.6",
    ),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "not a table of tensors but a list"),
    "numbers": (lambda path: torch.save({"model": {"a": 1}}, path), "'a' is a int"),
    "empty table": (lambda path: torch.save({"model": {}}, path), "no tensors"),
    "numbered tensors": (lambda path: torch.save({1: torch.zeros(2)}, path), "not a table of tensors"),
    "sparse tensor": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "dense tensor"),
    "tensor larger than its storage": (write_expanded, "stores less"),
    "compressed zip": (
        lambda path: rewritten(path, zipfile.ZIP_DEFLATED, lambda name, data: data),
        "compressed",
    ),
    "record too short": (
        lambda path: rewritten(
            path, zipfile.ZIP_STORED, lambda name, data: data[:8] if name.endswith("data/0") else data
        ),
        "damaged",
    ),
    "pickle with a foreign reference": (lambda path: with_pickle(path, b"\x80\x02K\x01Q."), "damaged"),
    "pickle cut off in a number": (lambda path: with_pickle(path, b"\x80\x02G\x00"), "damaged"),
    "other zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "damaged"),
}


@pytest.mark.parametrize("write", [row[0] for row in MALFORMED.values()], ids=MALFORMED)
def test_malformed_files_are_refused(
    tmp_path: Path, write: Callable[[Path], object], request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "file.pth"
    message = MALFORMED[request.node.callspec.id][1]
    write(path)
    with pytest.raises(CheckpointError, match=message) as refusal:
        reading.read_state_dict(path)
    assert str(path) in str(refusal.value)
    assert not trap(path).exists()


def test_the_trap_works(tmp_path: Path) -> None:
    torch.save({"model": MakesAFile(tmp_path / "trapped")}, tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., None]) -> None:
    monkeypatch.setattr(reading, "MAX_TENSORS", 20)
    save({str(number): torch.zeros(1) for number in range(21)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="more than 20"):
        reading.read_state_dict(tmp_path / "file")


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_wrappers_beside_arguments(tmp_path: Path, wrapper: str | None) -> None:
    content = {wrapper: TENSORS, "args": argparse.Namespace(lr=0.1), "epoch": 3} if wrapper else TENSORS
    torch.save(content, tmp_path / "file.bin")
    assert torch.equal(
        reading.read_state_dict(tmp_path / "file.bin")["encoder.a.weight"], TENSORS["encoder.a.weight"]
    )


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "file.pth", {"a": "b"})
    torch.save(TENSORS, tmp_path / "file.safetensors")
    for name, metadata in (("file.pth", {"a": "b"}), ("file.safetensors", {})):
        assert list(reading.read_state_dict(tmp_path / name)) == list(TENSORS)
        assert reading.read_metadata(tmp_path / name) == metadata


def test_a_header_as_long_as_a_pickle_begins(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_header(tmp_path / "file", {"a": entry}, struct.pack("<ff", 1, 2))
    assert (tmp_path / "file").read_bytes().startswith(b"\x80\x02")
    assert reading.read_state_dict(tmp_path / "file")["a"].tolist() == [1, 2]


def test_a_refused_file_leaves_the_model_alone(tmp_path: Path) -> None:
    model = create_beit3("beit3_nano_patch16", depth=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"model": MakesAFile(tmp_path / "trapped")}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="was not executed"):
        load_checkpoint(model, tmp_path / "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
