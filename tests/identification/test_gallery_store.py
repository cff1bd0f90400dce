"""What happens to a gallery when the machine is not kind: killed programs, full disks, read-only folders."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import Gallery

REPOSITORY = Path(__file__).parents[2]


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process of its own."""
    command = [
        sys.executable,
        "-c",
        "import numpy as np\nfrom mca_perception.identification.gallery import Gallery, GalleryError\n"
        + script,
    ]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def output(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return printed


def test_nothing_acknowledged_is_lost_when_the_program_is_killed() -> None:
    command = [sys.executable, "benchmarks/gallery_crashes.py", "--kills", "12", "--seed", "500"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    figures = json.loads(run.stdout)
    assert (figures["kills"], figures["lost"], figures["unopenable"]) == (12, 0, 0)
    assert figures["acknowledged_changes"] > 0


def test_full_disk_loses_nothing_and_passes(tmp_path) -> None:
    path = tmp_path / "g"
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, resource.RLIM_INFINITY))\n"
        "gallery = Gallery.open(sys.argv[1])\n"
        "for i in range(10_000):\n"
        "    try:\n"
        "        gallery.add(str(i), np.full(4096, i + 1.0))\n"
        "    except GalleryError as error:\n"
        "        message = error\n"
        "        break\n"
        "assert len(gallery) == i, len(gallery)\n"  # it can still be searched
        "gallery.search(np.ones(4096), 3)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "gallery.add('after', np.ones(4096))\n"
        "print(i, message)\n"
    )
    count, _, message = output(python(script, path)).partition(" ")
    assert 0 < int(count) < 1000
    assert "the disk is full" in message
    with Gallery.open(path, create=False) as gallery:
        assert set(gallery.products()) == {*map(str, range(int(count))), "after"}


def test_two_processes_write_at_once(tmp_path) -> None:
    path = tmp_path / "g"
    script = (
        "import sys\n"
        "with Gallery.open(sys.argv[1]) as gallery:\n"
        "    for i in range(60):\n"
        "        gallery.add(f'{sys.argv[2]}-{i}', np.eye(1, 8, i % 8))\n"
        "        gallery.add('shared', np.ones((int(sys.argv[3]), 8)))\n"
    )
    writers = [python(script, path, "a", 1), python(script, path, "b", 2)]
    for writer in writers:
        output(writer)
    with Gallery.open(path, create=False) as gallery:
        counts = gallery.reference_counts()
    assert counts.pop("shared") in (1, 2)
    assert counts == {f"{name}-{i}": 1 for name in "ab" for i in range(60)}


def test_writer_that_waits_too_long_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.identification.gallery_store._LOCK_TIMEOUT_S", 0.05)
    with Gallery.open(tmp_path / "g") as first, Gallery.open(tmp_path / "g") as second:
        second.add("a", np.ones(4))
        with first.store.writing():
            with pytest.raises(GalleryError, match="another process has been writing"):
                second.add("b", np.ones(4))
            assert second.search(np.ones(4), 1)[0][0][0] == "a"  # searches do not wait
        second.add("b", np.ones(4))
        assert first.products() == ["a", "b"]


@pytest.fixture
def protected() -> Iterator[Path]:
    """A folder that nobody may write, with a gallery; not below pytest's, which others may not enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "protected"
        folder.mkdir()
        with Gallery.open(folder / "g", model="m") as gallery:
            gallery.add("kept", np.eye(1, 4))
        Path(name).chmod(0o755)
        (folder / "g").chmod(0o444)
        folder.chmod(0o555)
        yield folder / "g"
        folder.chmod(0o755)


def test_read_only_folder_can_be_searched_but_not_changed(protected) -> None:
    script = (
        "import os, sys\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # permissions do not bind root
        "gallery = Gallery.open(sys.argv[1], model='m', create=False)\n"
        "assert gallery.search(np.eye(1, 4), 1) == [[('kept', 1.0)]]\n"
        "for change in (lambda: gallery.add('x', np.ones(4)), lambda: gallery.remove('kept')):\n"
        "    try:\n"
        "        change()\n"
        "    except GalleryError as error:\n"
        "        print(error)\n"
        "try:\n"
        "    Gallery.open(os.path.dirname(sys.argv[1]) + '/new')\n"
        "except GalleryError as error:\n"
        "    print(error)\n"
    )
    lines = output(python(script, protected)).splitlines()
    assert len(lines) == 3
    assert all("make both writable" in line for line in lines[:2])
    assert "new cannot be" in lines[2]
    with Gallery.open(protected, create=False) as gallery:
        assert gallery.products() == ["kept"]


def test_gallery_of_version_1_is_taken_over(tmp_path) -> None:
    rows = np.eye(3, 4, dtype="<f4")
    connection = sqlite3.connect(tmp_path / "g")
    with connection:
        connection.executescript(
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
            "INSERT INTO meta VALUES ('schema_version', '1'), ('model', 'm');"
            "CREATE TABLE reference (product_id TEXT NOT NULL, position INTEGER NOT NULL, embedding BLOB NOT NULL,"
            " PRIMARY KEY (product_id, position)) WITHOUT ROWID;"
        )
        entries = [("007", 0, rows[0].tobytes()), ("007", 1, rows[1].tobytes()), ("a", 0, rows[2].tobytes())]
        connection.executemany("INSERT INTO reference VALUES (?, ?, ?)", entries)
    connection.close()
    for _ in range(2):
        with Gallery.open(tmp_path / "g", model="m") as gallery:
            assert gallery.reference_counts() == {"007": 2, "a": 1}
            np.testing.assert_array_equal(gallery.embeddings("007"), rows[:2])


def test_too_many_references_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mca_perception.identification.gallery_store.MAX_REFERENCES", 5)
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.add("a", np.eye(4, 4))
        with pytest.raises(GalleryError, match="would exceed 5 references"):
            gallery.add("b", np.eye(2, 4))
        gallery.add("a", np.eye(3, 4))
        gallery.add("b", np.eye(2, 4))
        assert gallery.reference_counts() == {"a": 3, "b": 2}
