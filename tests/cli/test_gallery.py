from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.cli.main import main
from mca_perception.datasets.images import read_rgb
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.identification.gallery import Gallery
from tests.support.bundles import PALETTE, reference_photo, write_colour_bundle
from tests.support.datasets import write_image, write_reference_images


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> ModelBundle:
    return write_colour_bundle(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture
def mca(monkeypatch, capsys):
    """Run `mca gallery` and return its exit code and what it printed on both streams."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mca", "gallery", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_reference_images(tmp_path)
    return tmp_path / "Reference_Images"


@pytest.fixture
def path(mca, bundle, folder: Path, tmp_path: Path) -> Path:
    """A gallery with every colour."""
    path = tmp_path / "shop.gallery"
    assert mca("import", folder, "--path", path, "--model", bundle.path)[0] == 0
    return path


def test_import_reports_what_came_in_and_what_did_not(mca, bundle, folder, tmp_path) -> None:
    (folder / "red" / "1.png").write_bytes(b"damaged")
    (folder / "empty").mkdir()
    path = tmp_path / "shop.gallery"
    code, printed, _ = mca("import", folder, "--path", path, "--model", bundle.path, "--json")
    assert code == 0
    assert json.loads(printed) == {
        "imported_products": 6,
        "imported_images": 11,
        "skipped": {"image not readable": 1, "product with an empty reference folder": 1},
        "products": 6,
    }


def test_import_of_nothing_fails(mca, bundle, folder, tmp_path) -> None:
    for image in folder.rglob("*.png"):
        image.write_bytes(b"damaged")
    assert mca("import", folder, "--path", tmp_path / "g", "--model", bundle.path)[0] == 1
    code, _, errors = mca("import", tmp_path / "nowhere", "--path", tmp_path / "g", "--model", bundle.path)
    assert (code, "is not a folder" in errors) == (2, True)


def test_stats(mca, path, bundle) -> None:
    code, printed, _ = mca("stats", "--path", path, "--json", "--list")
    figures = json.loads(printed)
    assert code == 0
    assert (figures["products"], figures["references"], figures["dimension"]) == (6, 12, 4)
    assert figures["model"] == bundle.embedding_fingerprint
    assert figures["references_of"] == dict.fromkeys(sorted(PALETTE), 2)
    assert "products                6" in mca("stats", "--path", path)[1]


def test_search_finds_the_product(mca, path, bundle, tmp_path) -> None:
    write_image(tmp_path / "query.png", reference_photo("magenta", 80))
    options = ("--path", path, "--model", bundle.path)
    code, printed, _ = mca("search", tmp_path / "query.png", *options, "--k", 2)
    assert code == 0
    assert printed.splitlines()[0].endswith("magenta")
    assert len(printed.splitlines()) == 2
    _, printed, _ = mca(
        "search", tmp_path / "query.png", *options, "--product", "red", "--product", "nowhere", "--json"
    )
    found = json.loads(printed)
    assert [p["product_id"] for p in found["products"]] == ["red"]
    assert found["unknown"] == ["nowhere"]


def test_add_and_remove(mca, path, bundle, tmp_path) -> None:
    write_image(tmp_path / "front.png", reference_photo("red"))
    options = ("--path", path, "--model", bundle.path)
    assert mca("add", "0007", tmp_path / "front.png", tmp_path / "front.png", *options)[0] == 0
    with Gallery.open(path) as gallery:
        assert gallery.reference_counts()["0007"] == 2
    assert mca("remove", "0007", "--path", path)[0] == 0
    code, _, errors = mca("remove", "0007", "--path", path)
    assert (code, "has no product '0007'" in errors) == (2, True)


def test_import_of_a_list_with_copies(mca, bundle, folder, tmp_path) -> None:
    lines = ["product_id,image", "0007,red/1.png", "0007,red/2.png", "8,blue/1.png", "9,none.png"]
    (folder / "list.csv").write_text("\n".join(lines))
    options = ("--path", tmp_path / "g", "--model", bundle.path)
    code, printed, _ = mca("import", folder / "list.csv", *options, "--keep-copies", "--json")
    assert code == 0
    assert json.loads(printed)["skipped"] == {"image missing": 1}
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.reference_counts() == {"0007": 2, "8": 1}
        assert all(isinstance(image, bytes) for image in gallery.images(["0007"])["0007"])


def test_reembed_for_another_model(mca, path, folder, tmp_path) -> None:
    other = write_colour_bundle(tmp_path / "other", identification={"margin": 0.3})
    code, printed, _ = mca("reembed", "--path", path, "--model", other.path, "--json")
    assert code == 0
    figures = json.loads(printed)
    assert (figures["products"], figures["embedded_images"], figures["model"]) == (
        6,
        12,
        other.embedding_fingerprint,
    )
    moved = folder.rename(tmp_path / "moved")
    third = write_colour_bundle(tmp_path / "third", identification={"margin": 0.2})
    options = ("--path", path, "--model", third.path)
    code, _, errors = mca("reembed", *options)
    assert (code, "6 products without a readable image" in errors) == (2, True)
    assert mca("reembed", *options, "--images", moved)[0] == 0
    with Gallery.open(path, model=third.embedding_fingerprint) as gallery:
        assert len(gallery) == 6


def test_export_can_be_read_and_imported_again(mca, path, bundle, tmp_path) -> None:
    assert mca("export", "--path", path, "--out", tmp_path / "out")[0] == 0
    rows = np.load(tmp_path / "out" / "embeddings.npy")
    with (tmp_path / "out" / "references.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert rows.shape == (12, 4)
    with Gallery.open(path) as gallery:
        for product in PALETTE:
            at = [i for i, line in enumerate(lines) if line["product_id"] == product]
            np.testing.assert_array_equal(rows[at], gallery.embeddings(product))
    options = ("--path", tmp_path / "again", "--model", bundle.path)
    assert mca("import", tmp_path / "out" / "references.csv", *options)[0] == 0
    with Gallery.open(tmp_path / "again") as gallery:
        assert gallery.reference_counts() == dict.fromkeys(PALETTE, 2)


def test_export_of_an_empty_gallery(mca, tmp_path) -> None:
    Gallery.open(tmp_path / "g").close()
    assert mca("export", "--path", tmp_path / "g", "--out", tmp_path / "out")[0] == 0
    assert np.load(tmp_path / "out" / "embeddings.npy").shape == (0, 0)


def test_sheet_shows_products(mca, path, folder, tmp_path) -> None:
    (folder / "red" / "1.png").unlink()
    for image in (folder / "blue").iterdir():
        image.write_bytes(b"damaged")
    code, printed, _ = mca("sheet", "--path", path, "--out", tmp_path / "sheet.png")
    assert (code, "with 6 products, 1 of them without image" in printed) == (0, True)
    picture = read_rgb(tmp_path / "sheet.png")
    assert picture.shape[0] > 160
    assert picture.shape[1] > 6 * 160
    for arguments, message in (
        (("--product", "nowhere", "--out", tmp_path / "a.png"), "no product 'nowhere'"),
        (("--out", tmp_path / "a.text"), "cannot be written"),
        (("--out", tmp_path / "none" / "a.png"), "cannot be written"),
    ):
        code, _, errors = mca("sheet", "--path", path, *arguments)
        assert (code, message in errors) == (2, True)


def test_bad_input_ends_with_two(mca, path, bundle, tmp_path) -> None:
    other = write_colour_bundle(tmp_path / "other", identification={"margin": 0.3})
    write_image(tmp_path / "a.png", reference_photo("red"))
    (tmp_path / "text.png").write_text("no image")
    for arguments, message in (
        (("stats", "--path", tmp_path / "absent"), "does not exist"),
        (("search", tmp_path / "a.png", "--path", path, "--model", other.path), "not of"),
        (("add", "x", tmp_path / "text.png", "--path", path, "--model", bundle.path), "cannot be decoded"),
        (("add", " ", tmp_path / "a.png", "--path", path, "--model", bundle.path), "not valid"),
        (("add", "x", tmp_path / "a.png", "--path", path, "--model", tmp_path), "manifest.json is missing"),
    ):
        code, _, errors = mca(*arguments)
        assert code == 2, arguments
        assert message in errors
