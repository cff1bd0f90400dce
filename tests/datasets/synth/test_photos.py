from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.datasets.synth.catalogue import Catalogue
from mca_perception.datasets.synth.photos import cut_out, load_photos
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


@pytest.mark.parametrize(
    ("background", "pack"), [(255, (200, 40, 30)), (230, (20, 20, 20)), (255, (246, 247, 246))]
)
def test_cut_out_keeps_the_pack_and_its_window(background: int, pack: tuple[int, int, int]) -> None:
    rgba = cut_out(pack_shot(background, pack))
    solid = rgba[:, :, 3] > 127
    slack = 18 if min(pack) > 240 else 4
    assert abs(rgba.shape[1] - 105) <= slack
    assert abs(rgba.shape[0] - 135) <= slack
    assert solid[solid.shape[0] // 2, solid.shape[1] // 2]
    assert solid.mean() > 0.9


def test_alpha_channel_is_trusted() -> None:
    image = np.dstack([pack_shot(), np.zeros((220, 180), np.uint8)])
    image[60:100, 50:90, 3] = 255
    assert cut_out(image).shape == (44, 44, 4)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8), "background not plain"),
        (np.full((90, 90, 3), 255, np.uint8), "no foreground"),
        (np.full((10, 90, 3), 255, np.uint8), "smaller than 24 px"),
    ],
)
def test_unusable_photo_is_refused_with_its_reason(image: NDArray[np.uint8], reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        cut_out(image)


def test_photos_are_found_recursively_and_refusals_counted(tmp_path: Path) -> None:
    save(tmp_path / "000123.png", pack_shot())
    save(tmp_path / "a" / "tea.jpg", pack_shot())
    save(tmp_path / "b" / "tea.jpg", pack_shot())
    save(tmp_path / "b" / "blank.jpg", np.full((90, 90, 3), 255, np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    save(tmp_path / "...jpg", pack_shot())
    photos, refused = load_photos(tmp_path)
    assert [photo.product_id for photo in photos] == ["000123", "a_tea", "b_tea"]
    assert refused == {
        "not a readable image": 1,
        "no foreground found": 1,
        "name is hidden or already taken": 1,
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


def test_catalogue_of_photos_alone(shared_data: Path) -> None:
    folder = shared_data / "grocery" / "iconic-images-and-descriptions"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    photos, refused = load_photos(folder)
    assert len(photos) >= 75
    assert sum(refused.values()) <= 6
    catalogue = Catalogue(0, 0, photos)
    sprite = catalogue.render(catalogue.product(0), np.random.default_rng(0), 120)
    assert (sprite[:, :, 3] > 127).mean() > 0.3
