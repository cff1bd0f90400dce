from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.cli.main import main
from mca_perception.datasets.images import read_rgb
from mca_perception.retrieval.bundle import TOKENIZER_VARIABLE, RetrievalBundle
from mca_perception.retrieval.store import RetrievalStore
from tests.support.datasets import write_image
from tests.support.retrieval import WORDS, write_colour_encoder, write_colour_photos


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> RetrievalBundle:
    return write_colour_encoder(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_colour_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def mca(monkeypatch, capsys):
    """Run `mca` and return its exit code and what it printed on both streams."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mca", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def store(mca, bundle, photos, tmp_path) -> Path:
    store = tmp_path / "photos.store"
    assert mca("retrieval", "index", "--images", photos, "--store", store, "--model", bundle.path)[0] == 0
    return store


def test_index_reports_what_came_in_and_what_did_not(mca, bundle, photos, tmp_path) -> None:
    command = (
        "retrieval",
        "index",
        "--images",
        photos,
        "--store",
        tmp_path / "s",
        "--model",
        bundle.path,
        "--json",
    )
    code, printed, _ = mca(*command)
    figures = json.loads(printed)
    assert code == 0
    assert (figures["added"], figures["images"]) == (18, 18)
    assert figures["skipped"] == {"image not readable": 1}
    again = json.loads(mca(*command)[1])
    assert (again["added"], again["already"], again["version"]) == (0, 19, figures["version"])


@pytest.mark.parametrize("word", WORDS)
def test_search_finds_the_colour(mca, store, word: str) -> None:
    code, printed, _ = mca("retrieval", "search", "--store", store, f"a {word} picture", "--top-n", 3)
    assert code == 0
    assert [line.split()[1].split("/")[0] for line in printed.splitlines()] == [word] * 3


def test_search_shows_pictures_and_prints_json(mca, store, photos, tmp_path) -> None:
    (photos / "cyan" / "2.png").rename(photos / "moved.png")  # a picture that is gone leaves a grey square
    code, printed, _ = mca(
        "retrieval",
        "search",
        "cyan sea",
        "--store",
        store,
        "--json",
        "--out",
        tmp_path / "found.png",
        "--top-n",
        6,
    )
    (photos / "moved.png").rename(photos / "cyan" / "2.png")
    answer = json.loads(printed)
    assert code == 0
    assert len(answer["hits"]) == 6
    assert answer["full_scan"]
    assert answer["hits"][0]["uri"].endswith("png")
    assert set(answer["timing_ms"]) >= {"encode", "score", "total"}
    sheet = read_rgb(tmp_path / "found.png")
    assert np.abs(sheet.reshape(-1, 3).astype(int) - (0, 255, 255)).sum(axis=1).min() < 60


def test_search_reads_standard_input(mca, store, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a blue picture"))
    code, printed, _ = mca("retrieval", "search", "-", "--store", store, "--top-n", 3)
    assert (code, {line.split()[1].split("/")[0] for line in printed.splitlines()}) == (0, {"blue"})


@pytest.mark.parametrize(
    ("weight", "found"), [(0, {"blue"}), (0.5, {"blue", "red", "magenta"}), (1, {"red"})]
)
def test_a_text_and_an_image_are_one_query(mca, store, tmp_path, weight: float, found: set[str]) -> None:
    write_image(tmp_path / "red.png", np.full((9, 9, 3), (255, 0, 0), np.uint8))
    options = ("--image", tmp_path / "red.png", "--image-weight", weight, "--top-n", 3)
    code, printed, _ = mca("retrieval", "search", "a blue picture", "--store", store, *options)
    assert code == 0
    assert {line.split()[1].split("/")[0] for line in printed.splitlines()} <= found


def test_what_no_picture_shows_is_not_read(mca, store) -> None:
    text = "It is cheap. It comes by post. A red picture. It came from the sea."
    command = ("retrieval", "search", "--store", store, text, "--visual-share", 0.25, "--json")
    assert json.loads(mca(*command)[1])["summary"] == "A red picture."


def test_ray_is_named_where_it_is_missing(mca, bundle, photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ("--images", photos, "--store", tmp_path / "s", "--model", bundle.path, "--ray", "local")
    code, _, errors = mca("retrieval", "index", *command)
    assert (code, "--ray needs Ray: pip install" in errors) == (2, True)


def test_entities_narrow_a_search_down(mca, store, tmp_path) -> None:
    (tmp_path / "documents.jsonl").write_text(
        '{"text": "The red sea and a green one."}\n{"page_title": "Blue", "hierachy": ["Yellow"]}\n'
    )
    command = (
        "retrieval",
        "entities",
        "--documents",
        tmp_path / "documents.jsonl",
        "--store",
        store,
        "--json",
    )
    figures = json.loads(mca(*command, "--per-entity", 3)[1])
    assert (figures["documents"], figures["images_per_entity"]) == (2, 3)
    assert figures["added"] == figures["entities"] >= 4
    answer = json.loads(mca("retrieval", "search", "red or blue", "--store", store, "--json")[1])
    assert answer["entities_known"] == ["red", "blue"]
    assert (answer["candidate_count"], answer["full_scan"]) == (6, False)
    everything = json.loads(
        mca("retrieval", "search", "red or blue", "--store", store, "--json", "--no-entities")[1]
    )
    assert everything["full_scan"]
    code, _, errors = mca(*command, "--per-entity", 5)
    assert (code, "with 3 images each" in errors) == (2, True)


def test_shares_are_joined(mca, bundle, photos, store, tmp_path) -> None:
    parts = [tmp_path / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        command = ("retrieval", "index", "--images", photos, "--store", part, "--model", bundle.path)
        assert mca(*command, "--share", f"{number}/2")[0] == 0
    code, printed, _ = mca("retrieval", "merge", *parts, "--store", tmp_path / "joined", "--json")
    assert (code, json.loads(printed)["images"]) == (0, 18)
    query = ("a red picture", "--top-n", 3)
    assert sorted(
        mca("retrieval", "search", "--store", tmp_path / "joined", *query)[1].splitlines()
    ) == sorted(mca("retrieval", "search", "--store", store, *query)[1].splitlines())


def test_stats(mca, store, bundle) -> None:
    code, printed, _ = mca("retrieval", "stats", "--store", store, "--json")
    figures = json.loads(printed)
    assert code == 0
    assert (figures["images"], figures["dimension"], figures["dtype"]) == (18, 3, "float16")
    assert (figures["finished"], figures["skipped"]) == (True, {"image not readable": 1})
    assert figures["image_model"] == bundle.image_fingerprint
    assert "images              18" in mca("retrieval", "stats", "--store", store)[1]


def test_bad_input_ends_in_one_line(mca, store, bundle, photos, tmp_path) -> None:
    other = write_colour_encoder(tmp_path / "other")
    manifest = json.loads((other.path / "manifest.json").read_text())
    manifest["retrieval"]["image_size"] = 9
    (other.path / "manifest.json").write_text(json.dumps(manifest))
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        (("search", "--store", tmp_path / "nowhere", "red"), "does not exist"),
        (("search", "--store", store, "  "), "is empty"),
        (("search", "--store", store, "red", "--model", other.path), "holds vectors of image model"),
        (("search", "--store", store, "red", "--back-end", "annoy"), "choose one of exact"),
        (("index", "--images", empty, "--store", tmp_path / "s", "--model", bundle.path), "holds no image"),
        (("index", "--images", photos, "--store", store, "--model", other.path), "of image model"),
        (("index", "--images", photos, "--store", store, "--model", tmp_path), "manifest.json is missing"),
    ):
        code, _, errors = mca("retrieval", *arguments)
        assert (code, message in errors) == (2, True), (arguments, errors)
        assert errors.count("\n") == 1
    with RetrievalStore.write(store, image_model=bundle.image_fingerprint, dimension=3):
        code, _, errors = mca(
            "retrieval", "index", "--images", photos, "--store", store, "--model", bundle.path
        )
    assert (code, "is being written by process" in errors) == (2, True)


def test_a_bundle_without_its_vocabulary(mca, photos, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(TOKENIZER_VARIABLE, raising=False)
    bundle = write_colour_encoder(tmp_path / "bare", with_tokenizer=False)
    store = tmp_path / "s"
    assert mca("retrieval", "index", "--images", photos, "--store", store, "--model", bundle.path)[0] == 0
    code, _, errors = mca("retrieval", "search", "--store", store, "red")
    assert (code, "MCA_TOKENIZER" in errors) == (2, True)
    vocabulary = tmp_path / "bare.spm"
    assert mca("retrieval", "search", "--store", store, "red", "--tokenizer", vocabulary)[0] == 0
    monkeypatch.setenv(TOKENIZER_VARIABLE, str(vocabulary))
    assert mca("retrieval", "search", "--store", store, "red")[0] == 0
    shutil.copy(photos / "red" / "0.png", tmp_path / "wrong.spm")
    code, _, errors = mca(
        "retrieval", "search", "--store", store, "red", "--tokenizer", tmp_path / "wrong.spm"
    )
    assert (code, "is not the one that" in errors) == (2, True)
