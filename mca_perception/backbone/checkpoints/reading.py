"""Read a file as a table of tensors, and as nothing else.

No code of the file ever runs: safetensors cannot hold any, and ``torch.load(weights_only=True)`` refuses every global
but tensors and :class:`argparse.Namespace`, which the official fine-tuned files carry beside their weights. Sizes are
checked on the file's own directory (safetensors header, zip directory) before a tensor is allocated.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mca_perception.errors import CheckpointError

# BEiT-3 giant with both experts and heads in float32, with room for the optimiser state of a training checkpoint.
MAX_FILE_BYTES = 32 * 2**30
MAX_TENSORS = 20_000
MAX_PICKLE_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors library

# Keys under which a training checkpoint keeps its weights: torch and unilm, DeepSpeed, timm.
WRAPPERS = ("model", "module", "state_dict")

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_RESAVE = (
    "where you trust the file, re-save its weights alone: "
    "torch.save({'model': model.state_dict()}, ...) or safetensors' save_file"
)
_AGAIN = "download or copy it again"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or ``torch.save`` file (the latter bare, or under one of ``WRAPPERS``).

    What the file is decides its content, not its name.

    Raises:
        CheckpointError: the file is absent, damaged, too large, holds anything but tensors, or wants to run code.
    """
    path = Path(path)
    tensors = {}
    for key, value in _read(path).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"checkpoint {path} is not a table of tensors: {str(key)[:80]!r} is a {type(value).__name__}; {_RESAVE}"
            )
        if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"checkpoint {path}: {key} is not a plain dense tensor; {_RESAVE}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"checkpoint {path}: {key} claims the shape {tuple(value.shape)} and stores less; {_RESAVE}"
            )
        tensors[key] = value.detach()
    if not tensors:
        raise CheckpointError(f"checkpoint {path} holds no tensors; choose a file with weights")
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings in the header of a safetensors file; none for other files.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(path)
    if not _is_safetensors(_start(path)):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); {_AGAIN}") from error


def _read(path: Path) -> Mapping[Any, Any]:
    start = _start(path)
    try:
        if _is_safetensors(start):
            return _read_safetensors(path, start)
        if start.startswith(_ZIP_MAGIC):
            return _read_torch(path)
        if start.startswith(_PICKLE_MAGIC):
            raise CheckpointError(
                f"checkpoint {path} is a bare pickle (or from torch before 1.6), which could run code: not opened; "
                f"{_RESAVE}"
            )
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error or 'out of memory'}") from error
    raise CheckpointError(
        f"checkpoint {path} is neither a safetensors nor a torch.save file; give a .safetensors or .pth with weights"
    )


def _start(path: Path) -> bytes:
    """The first nine bytes of a file whose size is in bounds."""
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder; give the weights file in it")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"checkpoint {path} has {size / 2**30:.0f} GiB, more than {MAX_FILE_BYTES // 2**30}: it is no backbone; "
            "give a file with weights only"
        )
    if size == 0:
        raise CheckpointError(f"checkpoint {path} is empty; {_AGAIN}")
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error


def _is_safetensors(start: bytes) -> bool:
    """The length of the header, then the header, a JSON object. The length may begin like a pickle."""
    return start[8:] == b"{"


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    size = path.stat().st_size
    (header,) = struct.unpack("<Q", start[:8])
    if header > min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"checkpoint {path} is damaged: its header claims {header} of {size} bytes; {_AGAIN}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_count(path, len(names))
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is damaged or cut off ({error}); {_AGAIN}") from error


def _read_torch(path: Path) -> Mapping[Any, Any]:
    _check_archive(path)
    try:
        # An open file, since torch.load takes a path that ends in .safetensors for one.
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and was not executed ({_unsafe_global(error) or reason}); "
            f"{_RESAVE}"
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch's unpickler meets damage with errors of nearly every type
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); {_AGAIN}") from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            return content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint {path} is not a table of tensors but a {type(content).__name__}; {_RESAVE}"
        )
    return content


def _check_archive(path: Path) -> None:
    """Judge a ``torch.save`` archive by its directory: whole, uncompressed and in bounds."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or cut off ({error}); {_AGAIN}") from error
    _check_count(path, len(records))
    if sum(record.file_size for record in records) > MAX_FILE_BYTES or any(
        record.compress_type != zipfile.ZIP_STORED for record in records
    ):
        raise CheckpointError(
            f"checkpoint {path} is compressed or claims more than its size, as torch.save never writes it; {_RESAVE}"
        )
    if any(record.filename.endswith(".pkl") and record.file_size > MAX_PICKLE_BYTES for record in records):
        raise CheckpointError(
            f"checkpoint {path} describes its tensors in more than {MAX_PICKLE_BYTES // 2**20} MiB; {_RESAVE}"
        )


def _check_count(path: Path, count: int) -> None:
    if count > MAX_TENSORS:
        raise CheckpointError(
            f"checkpoint {path} holds {count} tensors, more than {MAX_TENSORS}: it is no backbone; "
            "give a file with weights only"
        )


def _unsafe_global(error: pickle.UnpicklingError) -> str:
    """The sentence of torch's message that names what was refused."""
    return next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "")
