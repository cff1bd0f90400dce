import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mca_perception.datasets.synth.cutouts import cut_out
from mca_perception.errors import DatasetError

Image = NDArray[np.uint8]
HEIGHT, WIDTH = 220, 180
PACK = np.zeros((HEIGHT, WIDTH), bool)
PACK[50:181, 40:141] = True


def pack_shot(background: Image | int = 255, pack: tuple[int, int, int] = (200, 40, 30)) -> Image:
    """A pack with a window in white, RGB."""
    image = (
        np.full((HEIGHT, WIDTH, 3), background, np.uint8)
        if isinstance(background, int)
        else background.copy()
    )
    image[PACK] = pack
    cv2.rectangle(image, (70, 90), (110, 120), (255, 255, 255), -1)
    return image


def gradient() -> Image:
    ramp = np.linspace(140, 240, HEIGHT)[:, None] + np.linspace(-30, 10, WIDTH)[None]
    return np.repeat(ramp[..., None], 3, 2).astype(np.uint8)


def textured() -> Image:
    """Coarse dark blue and beige cloth."""
    noise = np.random.default_rng(1).random((HEIGHT // 10, WIDTH // 10))
    coarse = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)[..., None]
    return np.where(coarse < 0.5, np.array([30, 40, 90]), np.array([190, 180, 150])).astype(np.uint8)


def shadowed() -> Image:
    image = np.full((HEIGHT, WIDTH, 3), 250, np.float32)
    shade = np.zeros((HEIGHT, WIDTH), np.float32)
    cv2.ellipse(shade, (140, 168), (34, 14), 0, 0, 360, 1.0, -1)
    return (image * (1 - 0.25 * cv2.GaussianBlur(shade, (0, 0), 9))[..., None]).astype(np.uint8)


@pytest.mark.parametrize(
    ("background", "pack"),
    [
        pytest.param(255, (200, 40, 30), id="white"),
        pytest.param(230, (20, 20, 20), id="grey"),
        pytest.param(255, (246, 247, 246), id="white on white"),
        pytest.param(gradient(), (200, 40, 30), id="gradient"),
        pytest.param(textured(), (30, 190, 60), id="textured, by GrabCut"),
        pytest.param(shadowed(), (200, 40, 30), id="cast shadow"),
    ],
)
def test_cut_out_is_the_pack_with_its_window(background: Image | int, pack: tuple[int, int, int]) -> None:
    rgba = cut_out(pack_shot(background, pack))
    assert abs(rgba.shape[1] - PACK.any(0).sum() - 4) <= 6
    assert abs(rgba.shape[0] - PACK.any(1).sum() - 4) <= 6
    solid = rgba[:, :, 3] > 127
    assert solid[solid.shape[0] // 2, solid.shape[1] // 2]
    assert abs(solid.sum() / PACK.sum() - 1) < 0.06


def test_outline_of_a_pale_pack_beside_dark_print_is_straight() -> None:
    image = pack_shot(255, (246, 247, 246))
    cv2.rectangle(image, (40, 60), (135, 80), (20, 30, 120), -1)
    solid = cut_out(image)[:, :, 3] > 127
    assert solid[10:-10].sum(1).min() >= PACK.any(0).sum() - 8


def test_alpha_channel_is_trusted() -> None:
    image = np.dstack([pack_shot(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    image[60:100, 50:90, 3] = 255
    assert cut_out(image).shape == (44, 44, 4)


def test_product_may_touch_the_border() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    image[:, 60:120] = (200, 40, 30)
    assert cut_out(image).shape[1] == pytest.approx(64, abs=2)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8), "background not plain"),
        (textured(), "background not plain"),
        (np.full((90, 90, 3), 255, np.uint8), "no foreground"),
        (np.full((10, 90, 3), 255, np.uint8), "smaller than 24 px"),
        (np.zeros((90, 90, 4), np.uint8), "no foreground"),
    ],
)
def test_unusable_photo_is_refused_with_its_reason(image: Image, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        cut_out(image)


def test_equal_photos_give_equal_cut_outs() -> None:
    image = pack_shot(textured(), (30, 190, 60))
    assert np.array_equal(cut_out(image), cut_out(image))
