"""Built engines on disk: a complete key, atomic entries that are checked when read, one builder at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mca_perception.errors import BundleError
from mca_perception.resources import cache_folder

__all__ = ["CACHE_VARIABLE", "EngineCache", "EngineKey", "file_digest", "processor"]

CACHE_VARIABLE = "MCA_ENGINE_CACHE"
"""Environment variable that names the folder of the cache."""

_MAX_HEADER_BYTES = 65_536
_CHUNK_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on; one that differs in anything is another engine.

    Attributes:
        model: SHA-256 of the ONNX file.
        builder: library with its version.
        device: name and compute capability of the GPU, or name and instruction sets of the processor.
        precision: of the arithmetic.
        profile: shapes that it was built for.
    """

    model: str
    builder: str
    device: str
    precision: str
    profile: str

    @property
    def digest(self) -> str:
        """SHA-256 of the key, the name of the entry."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class EngineCache:
    """Engines by key in one folder, shared by processes.

    An entry is one file: a line of JSON with the key and the SHA-256 of the rest, then the engine. It comes into
    being by renaming a finished file, so a killed builder leaves no entry; an entry that does not fit its own line is
    removed and built again. Locks are the operating system's and end with their process.

    Attributes:
        folder: where the entries lie; made when the first one is written.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Use a folder: the one given, that of ``MCA_ENGINE_CACHE``, or the user's cache folder."""
        if folder is None:
            folder = os.environ.get(CACHE_VARIABLE) or cache_folder("engines")
        self.folder = Path(folder)

    def get(self, key: EngineKey) -> bytes | None:
        """The engine, or None when there is none that can be trusted."""
        path = self._path(key)
        try:
            with path.open("rb") as stream:
                return _read(stream, key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            _log.warning("engine %s is not used and will be built again: %s", path, error)
            return None

    def get_or_build(
        self,
        key: EngineKey,
        build: Callable[[str], None],
        *,
        on_state: Callable[[str], None] = _log.info,
    ) -> bytes:
        """The engine from the cache, or built now.

        When another process builds the same engine, this one waits for it.

        Args:
            key: of the engine.
            build: writes the engine to the file that it is given.
            on_state: told ``waiting for ...`` and ``building ...``, for logs and diagnostics.

        Raises:
            BundleError: the folder cannot be written to and the engine is not in it yet.
        """
        engine = self.get(key)
        if engine is not None:
            return engine
        with self._locked(key, on_state):
            engine = self.get(key)  # built by another process while this one waited
            if engine is not None:
                return engine
            on_state(f"building {key.builder} engine for {key.device}")
            return self._build(key, build)

    def _build(self, key: EngineKey, build: Callable[[str], None]) -> bytes:
        prefix = f".building-{key.digest[:16]}-"
        for killed in self.folder.glob(f"{prefix}*"):  # of builders that were killed: the lock is ours
            shutil.rmtree(killed, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=prefix) as folder:
            raw = Path(folder, "engine")
            build(str(raw))
            engine = raw.read_bytes()
            header = {**asdict(key), "sha256": hashlib.sha256(engine).hexdigest()}
            finished = Path(folder, "entry")
            with finished.open("wb") as stream:
                stream.write(json.dumps(header, sort_keys=True).encode() + b"\n")
                stream.write(engine)
                stream.flush()
                os.fsync(stream.fileno())
            finished.replace(self._path(key))
        return engine

    def _path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}.engine"

    @contextmanager
    def _locked(self, key: EngineKey, on_state: Callable[[str], None]) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = (self.folder / f"{key.digest}.lock").open("ab")
        except OSError as error:
            raise BundleError(
                f"engine cache {self.folder} cannot be written to ({error.strerror}) and does not hold the engine yet; "
                f"set {CACHE_VARIABLE} to a folder that can, or build the engine there beforehand"
            ) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_state(f"waiting for another process that builds the {key.builder} engine")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file.

    Raises:
        BundleError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export it again") from error
    return digest.hexdigest()


def processor() -> str:
    """Name of the processor and a hash of its instruction sets: optimised graphs depend on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name", platform.processor()).strip()
    return f"{platform.machine()} {name} {hashlib.sha256(' '.join(sorted(flags)).encode()).hexdigest()[:16]}"


def _read(stream: IO[bytes], key: EngineKey) -> bytes:
    """Engine of an entry; ValueError when the entry is damaged or of another key."""
    header = json.loads(stream.readline(_MAX_HEADER_BYTES))
    engine = stream.read()
    if not isinstance(header, dict):
        raise ValueError("its first line is no JSON object")
    stated = header.pop("sha256", None)
    if header != asdict(key):
        raise ValueError("it is of another key")
    if hashlib.sha256(engine).hexdigest() != stated:
        raise ValueError("it was altered or cut off")
    return engine
