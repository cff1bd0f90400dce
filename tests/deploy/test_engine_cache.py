"""Nothing but whole engines of the right key is ever used, whatever kills whom and whoever builds at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest

from mca_perception.deploy import engine_cache
from mca_perception.deploy.engine_cache import CACHE_VARIABLE, EngineCache, EngineKey, file_digest, processor
from mca_perception.errors import BundleError

KEY = EngineKey("0" * 64, "tensorrt 11.4", "NVIDIA H200, compute capability 9.0", "fp16", "1x3x224x224")
ENGINE = b"engine" * 1000

# Writers are killed in the middle of it, one after the other; every engine is its key's name repeated.
KILLED_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from mca_perception.deploy.engine_cache import EngineCache, EngineKey

def key(i): return EngineKey(str(i % 5), "b", "d", "p", "s")
def content(i): return str(i % 5).encode() * 200_000
cache, rng, used = EngineCache(sys.argv[1]), random.Random(0), 0
for i in range(50):
    child = os.fork()
    if child == 0:
        while True:
            cache.get_or_build(key(i), lambda path: Path(path).write_bytes(content(i)))
            (cache.folder / f"{key(i).digest}.engine").unlink(missing_ok=True)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = cache.get(key(i))
    assert found in (None, content(i)), f"after kill {i}"
    used += found is not None
for i in range(5):
    (cache.folder / f"{key(i).digest}.engine").unlink(missing_ok=True)
    assert cache.get_or_build(key(i), lambda path: Path(path).write_bytes(content(i))) == content(i)
assert not list(cache.folder.glob(".building-*")), "rubbish of killed builders"
print(used)
"""


def write(path: str) -> None:
    Path(path).write_bytes(ENGINE)


def forbidden(_: str) -> None:
    raise AssertionError("the engine is there already")


def test_engine_is_built_once_and_kept(tmp_path) -> None:
    cache = EngineCache(tmp_path / "new" / "folder")
    states: list[str] = []
    assert cache.get(KEY) is None
    assert cache.get_or_build(KEY, write, on_state=states.append) == ENGINE
    assert cache.get_or_build(KEY, forbidden) == ENGINE
    assert states == ["building tensorrt 11.4 engine for NVIDIA H200, compute capability 9.0"]
    assert not list(cache.folder.glob(".building-*"))


@pytest.mark.parametrize("field", [field.name for field in fields(EngineKey)])
def test_everything_in_the_key_makes_another_engine(tmp_path, field) -> None:
    cache = EngineCache(tmp_path)
    cache.get_or_build(KEY, write)
    assert cache.get(replace(KEY, **{field: "another"})) is None


@pytest.mark.parametrize(
    "damage",
    [lambda e: e[:-1], lambda e: e[:50], lambda e: b"", lambda e: b"[1]\n" + e, lambda e: e[:-1] + b"x"],
    ids=["cut", "header only", "empty", "foreign", "altered"],
)
def test_damaged_entry_is_built_again(tmp_path, damage, caplog) -> None:
    cache = EngineCache(tmp_path)
    cache.get_or_build(KEY, write)
    (entry,) = tmp_path.glob("*.engine")
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.get(KEY) is None
    assert "will be built again" in caplog.text
    assert cache.get_or_build(KEY, write) == ENGINE
    assert cache.get(KEY) == ENGINE


def test_engine_of_another_device_under_this_name_is_not_used(tmp_path) -> None:
    cache, other = EngineCache(tmp_path), replace(KEY, device="NVIDIA Orin, compute capability 8.7")
    cache.get_or_build(other, write)
    (tmp_path / f"{other.digest}.engine").rename(tmp_path / f"{KEY.digest}.engine")
    assert cache.get(KEY) is None


def test_failed_build_leaves_nothing(tmp_path) -> None:
    cache = EngineCache(tmp_path)

    def fail(path: str) -> None:
        Path(path).write_bytes(b"half")
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.get_or_build(KEY, fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_of_two_builders_one_builds_and_one_waits(tmp_path) -> None:
    building, finish, waiting = threading.Event(), threading.Event(), threading.Event()
    builds: list[str] = []
    found: list[bytes] = []

    def build(path: str) -> None:
        builds.append(path)
        building.set()
        assert finish.wait(30)
        write(path)

    def state(text: str) -> None:
        if text.startswith("waiting"):
            waiting.set()

    def builder() -> None:
        found.append(EngineCache(tmp_path).get_or_build(KEY, build, on_state=state))

    threads = [threading.Thread(target=builder) for _ in range(2)]
    threads[0].start()
    assert building.wait(30)
    threads[1].start()
    assert waiting.wait(30)
    finish.set()
    for thread in threads:
        thread.join(30)
    assert (len(builds), found) == (1, [ENGINE, ENGINE])


def test_fifty_killed_writers_leave_no_engine_that_is_not_whole(tmp_path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED_WRITERS, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert 0 <= int(run.stdout) <= 50


def test_read_only_cache_serves_what_it_has_and_refuses_to_build(tmp_path, monkeypatch) -> None:
    cache = EngineCache(tmp_path)
    cache.get_or_build(KEY, write)
    real = Path.open

    def read_only(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        if mode != "rb" and self.parent == tmp_path:
            raise OSError(30, "Read-only file system")
        return real(self, mode, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(engine_cache.Path, "open", read_only)  # root may write everywhere
    assert cache.get_or_build(KEY, forbidden) == ENGINE
    with pytest.raises(BundleError, match=rf"Read-only file system.*set {CACHE_VARIABLE}"):
        cache.get_or_build(replace(KEY, precision="int8"), write)


def test_cache_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written to"):
        EngineCache(tmp_path / "file" / "engines").get_or_build(KEY, write)


def test_folder_comes_from_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a"))
    assert EngineCache().folder == tmp_path / "a"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert EngineCache().folder == tmp_path / "b" / "mca_perception" / "engines"


def test_digests(tmp_path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"abc")
    assert file_digest(tmp_path / "graph.onnx").startswith("ba7816bf")
    with pytest.raises(BundleError, match="cannot be read"):
        file_digest(tmp_path / "absent.onnx")
    assert os.uname().machine in processor()
