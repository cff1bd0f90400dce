"""The shipped model on a fresh machine: a search in its own pictures, and in new synthesised ones."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mca_perception.cli.main import main
from mca_perception.datasets.images import read_rgb
from mca_perception.errors import RetrievalError
from mca_perception.retrieval.embedded import embedded_store
from mca_perception.retrieval.store import RetrievalStore

pytestmark = pytest.mark.xdist_group("retrieval_embedded")
pytest.importorskip("sentencepiece")

BUNDLE_BYTES = 9_500_000
PICTURES = 120
PRODUCTS = 60
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
LISTED = 5


@pytest.fixture
def mca(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `mca` and return what it printed."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert not end.value.code, printed.err
        return printed.out

    return run


def test_the_bundle_is_small(repository: Path) -> None:
    files = (repository / "models" / "retrieval").rglob("*")
    assert sum(file.stat().st_size for file in files if file.is_file()) < BUNDLE_BYTES


def test_a_search_without_a_store_looks_at_the_shipped_pictures(
    mca: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sheet = tmp_path / "found.jpg"
    hits = json.loads(mca("retrieval", "search", "a red box", "--out", sheet, "--json"))["hits"]
    assert len(hits) == 10
    assert min(read_rgb(sheet).shape[:2]) > 100
    first = embedded_store()
    with RetrievalStore.open(first) as store:
        assert store.count == PICTURES
        version = store.version
    again = json.loads(mca("retrieval", "search", "a red box", "--json"))["hits"]
    assert again == hits
    with RetrievalStore.open(first) as store:
        assert store.version == version  # nothing was encoded again
    shutil.rmtree(first)
    first.mkdir()  # as if the first call had been killed right away
    assert embedded_store() == first
    with RetrievalStore.open(first) as store:
        assert store.count == PICTURES


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RetrievalError, match="cache"):
        embedded_store()


def test_pictures_of_other_products_have_the_colour_that_was_named(
    mca: Callable[..., str], repository: Path, tmp_path: Path
) -> None:
    model, store = repository / "models" / "retrieval", tmp_path / "captions.store"
    captions = tmp_path / "captions"
    mca("synth", "captions", "--out", captions, "--count", PRODUCTS, "--seed", 8)  # trained on seed 1
    mca("retrieval", "index", "--images", captions / "images", "--store", store, "--model", model)
    lines = [json.loads(line) for line in (captions / "pairs.jsonl").read_text().splitlines()]
    colours = {Path(line["image"]).name: line["text"].split()[0] for line in lines[::3]}
    counts = Counter(colours.values())
    right, by_chance = 0, 0.0
    for colour in COLOURS:
        found = mca("retrieval", "search", "--store", store, f"a {colour} box", "--top-n", LISTED, "--json")
        hits = [Path(hit["image_id"]).name for hit in json.loads(found)["hits"]]
        right += sum(colours[name] == colour for name in hits)
        by_chance += LISTED * counts[colour] / len(colours)
    assert right > 3 * by_chance
