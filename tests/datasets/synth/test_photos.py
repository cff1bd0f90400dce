from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.photos import is_held_back, load_photos
from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
from mca_perception.errors import DatasetError


def pack_shot(background: int = 255, pack: tuple[int, int, int] = (200, 40, 30)) -> NDArray[np.uint8]:
    """A pack with a window in the background's colour, RGB."""
    image = np.full((220, 180, 3), background, np.uint8)
    cv2.rectangle(image, (40, 50), (140, 180), pack, -1)
    cv2.rectangle(image, (70, 90), (110, 120), (background,) * 3, -1)
    return image


def save(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    assert cv2.imwrite(str(path), cv2.cvtColor(image, code))


def test_photos_are_found_recursively_and_refusals_counted(tmp_path: Path) -> None:
    save(tmp_path / "000123.png", pack_shot())
    save(tmp_path / "a" / "tea.jpg", pack_shot())
    save(tmp_path / "b" / "tea.jpg", pack_shot())
    save(tmp_path / "b" / "blank.jpg", np.full((90, 90, 3), 255, np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    save(tmp_path / "...jpg", pack_shot())
    photos, refused = load_photos(tmp_path)
    assert [photo.product_id for photo in photos] == ["000123", "a_tea", "b_tea"]
    assert {path.name: reason for path, reason in refused.items()} == {
        "broken.jpg": "not a readable image",
        "blank.jpg": "no foreground found",
        "...jpg": "name is hidden or already taken",
    }


def test_folder_without_usable_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \.jpg or \.png file"):
        load_photos(tmp_path)
    save(tmp_path / "blank.jpg", np.full((90, 90, 3), 255, np.uint8))
    with pytest.raises(DatasetError, match="1 x no foreground found"):
        load_photos(tmp_path)


def test_photos_stand_beside_procedural_products(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "tea.png", pack_shot())
    settings = ToteSettings(tmp_path / "out", 3, seed=1, products=3, catalog=tmp_path / "photos")
    figures = write_totes(settings, workers=1)
    assert figures["photos"] == 1
    names = {path.name for path in (tmp_path / "out" / "Reference_Images").iterdir()}
    assert "tea" in names
    assert len(names) > 1


def test_sheet_shows_photos_cut_outs_and_refusals(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "tea.png", pack_shot())
    save(tmp_path / "photos" / "blank.jpg", np.full((90, 90, 3), 255, np.uint8))
    settings = ToteSettings(tmp_path / "out", 1, seed=1, products=0, catalog=tmp_path / "photos")
    figures = write_totes(settings, workers=1)
    assert (figures["photos"], figures["photos_refused"]) == (1, {"no foreground found": 1})
    sheet = cv2.imread(str(tmp_path / "out" / "catalogue_sheet.jpg"))
    refused, used = (sheet[:, start : start + 300].reshape(-1, 3).astype(int) for start in (0, 300))
    behind = [(np.abs(tile - (90, 160, 70)).max(1) < 30).mean() for tile in (refused, used)]
    red_text = [((tile[:, 2] - tile[:, 1]) > 80).mean() for tile in (refused, used)]
    assert behind[0] == 0
    assert behind[1] > 0.005
    assert 0 < red_text[0] < 0.02 < red_text[1]


def test_no_sheet_without_photos(tmp_path: Path) -> None:
    write_totes(ToteSettings(tmp_path, 1, seed=1, products=3), workers=1)
    assert not (tmp_path / "catalogue_sheet.jpg").exists()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
def test_share_of_photos_is_kept(tmp_path: Path, share: float) -> None:
    save(tmp_path / "tea.png", pack_shot())
    photos, _ = load_photos(tmp_path)
    drawn = np.array(Catalogue(1, 50, photos, share).draw(np.random.default_rng(0), 3000))
    assert (drawn == 50).mean() == pytest.approx(share, abs=0.03)
    assert len(np.unique(drawn)) == (1 if share == 1 else 51 if share else 50)


@pytest.mark.parametrize(("share", "products", "catalog"), [(1.5, 4, True), (0.5, 0, True), (0.5, 4, False)])
def test_share_that_cannot_be_given_is_refused(
    tmp_path: Path, share: float, products: int, catalog: bool
) -> None:
    save(tmp_path / "photos" / "tea.png", pack_shot())
    folder = tmp_path / "photos" if catalog else None
    settings = ToteSettings(tmp_path / "out", 1, 1, products=products, catalog=folder, photo_share=share)
    with pytest.raises(DatasetError, match=r"--p"):
        write_totes(settings, workers=1)
    assert not (tmp_path / "out").exists()


def test_products_held_back_are_shown_by_the_test_split_alone(tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / "photos" / f"tea-{number}.png", pack_shot(pack=(200, 10 * number, 30)))
    sides = []
    for split in ("test", "train=0.5,val=0.5"):
        settings = ToteSettings(
            tmp_path / split[:4],
            4,
            1,
            products=0,
            catalog=tmp_path / "photos",
            split=split,
            photo_test_fraction=0.4,
        )
        figures = write_totes(settings, workers=1)
        assert figures["photos"] + figures["photos_of_other_splits"] == 12
        sides.append({photo.product_id for photo in settings.open_catalogue().catalogue.photos})
        shown = {path.name for path in (tmp_path / split[:4] / "Reference_Images").iterdir()}
        assert shown <= sides[-1]
    assert len(sides[0] | sides[1]) == 12
    assert not sides[0] & sides[1]
    assert all(sides)


def test_side_of_a_product_depends_on_its_name_alone() -> None:
    names = [f"product-{number}" for number in range(3000)]
    third = {name for name in names if is_held_back(name, 1 / 3)}
    assert len(third) / len(names) == pytest.approx(1 / 3, abs=0.03)
    assert third < {name for name in names if is_held_back(name, 0.5)}


@pytest.mark.parametrize(
    ("fraction", "split", "catalog", "message"),
    [
        (1.0, "test", True, "between 0 and 1"),
        (0.3, "test", False, "needs --catalog"),
        (0.3, "train=0.7,val=0.15,test=0.15", True, "two runs"),
        (1e-9, "test", True, "none of the 1 photos is held back"),
        (1 - 1e-9, "train", True, "none of the 1 photos is left beside"),
    ],
)
def test_fraction_that_cannot_be_held_back_is_refused(
    tmp_path: Path, fraction: float, split: str, catalog: bool, message: str
) -> None:
    save(tmp_path / "photos" / "tea.png", pack_shot())
    folder = tmp_path / "photos" if catalog else None
    settings = ToteSettings(tmp_path / "out", 1, 1, catalog=folder, split=split, photo_test_fraction=fraction)
    with pytest.raises(DatasetError, match=message):
        write_totes(settings, workers=1)
    assert not (tmp_path / "out").exists()


def test_catalogue_of_photos_alone(shared_data: Path) -> None:
    folder = shared_data / "grocery" / "iconic-images-and-descriptions"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    photos, refused = load_photos(folder)
    assert len(photos) >= 75
    assert len(refused) <= 6
    catalogue = Catalogue(0, 0, photos)
    sprite = catalogue.render(catalogue.product(0), np.random.default_rng(0), 120)
    assert (sprite[:, :, 3] > 127).mean() > 0.3
