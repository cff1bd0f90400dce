"""Camera and light effects on a finished composition. Images are RGB uint8 ``[H, W, 3]``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.textures import Field, Image

_BANK_SIZE = 1024


@dataclass(frozen=True)
class Look:
    """Photographic look of one scene."""

    gains: tuple[float, float, float]
    exposure: float
    gamma: float
    blur: float
    motion: float
    noise: float
    vignette: float
    slope: tuple[float, float]
    jpeg_quality: int


def draw_look(rng: np.random.Generator) -> Look:
    """Random look: mostly neutral warehouse light, sometimes warm, dim, blurred or noisy."""
    warmth = rng.normal(0, 0.05)
    tint = rng.normal(0, 0.012)
    return Look(
        gains=(1 + warmth, 1 + tint, 1 - warmth),
        exposure=float(np.clip(rng.normal(0.98, 0.13), 0.6, 1.3)),
        gamma=float(rng.uniform(0.85, 1.15)),
        blur=float(rng.choice([0.0, rng.uniform(0.4, 0.8), rng.uniform(0.8, 1.3)], p=[0.4, 0.45, 0.15])),
        motion=float(rng.uniform(2, 5)) if rng.random() < 0.06 else 0.0,
        noise=float(np.clip(rng.lognormal(np.log(3.0), 0.5), 0.8, 10)),
        vignette=float(rng.uniform(0.0, 0.35)),
        slope=(float(rng.normal(0, 0.14)), float(rng.normal(0, 0.14))),
        jpeg_quality=int(rng.integers(86, 95)),
    )


@lru_cache(maxsize=12)
def _noise_bank(step: int) -> NDArray[np.int8]:
    """Sensor noise of deviation 1.3**step, made once: fresh noise would cost half of a scene's time."""
    noise = np.random.default_rng(991).standard_normal((_BANK_SIZE, _BANK_SIZE, 3), np.float32)
    return np.asarray(np.clip(np.rint(noise * 1.3**step), -127, 127), np.int8)


def apply_look(image: Image, look: Look, rng: np.random.Generator) -> Image:
    """Light gradient, colour temperature, vignetting, blur, exposure and sensor noise."""
    height, width = image.shape[:2]
    small_y, small_x = (
        np.linspace(-1, 1, 32, dtype=np.float32)[:, None],
        np.linspace(-1, 1, 40, dtype=np.float32)[None],
    )
    light = (1 + look.slope[0] * small_x + look.slope[1] * small_y) * (
        1 - look.vignette * 0.5 * (small_x**2 + small_y**2)
    )
    light = light + 0.03 * cv2.resize(tx.noise(rng, 64, 80, 5), (40, 32))
    tinted = light[..., None] * np.array(look.gains, np.float32) * np.float32(look.exposure)
    field = cv2.resize(tinted.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    lit = cv2.multiply(image, field, dtype=cv2.CV_8U)
    if look.blur > 0:
        lit = cv2.GaussianBlur(lit, (0, 0), look.blur)
    if look.motion > 0:
        lit = cv2.filter2D(lit, -1, _motion_kernel(look.motion, rng.uniform(0, np.pi)))
    y, x = (int(rng.integers(0, _BANK_SIZE - size + 1)) for size in (height, width))
    bank = _noise_bank(round(float(np.log(look.noise) / np.log(1.3))))
    noisy = cv2.add(lit, bank[y : y + height, x : x + width], dtype=cv2.CV_8U)
    curve = np.clip(255 * (np.arange(256) / 255.0) ** look.gamma, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(noisy, curve), np.uint8)


def _motion_kernel(length: float, angle: float) -> Field:
    size = int(length) | 1
    kernel = np.zeros((size, size), np.float32)
    middle, reach = size // 2, size / 2
    dx, dy = np.cos(angle) * reach, np.sin(angle) * reach
    cv2.line(
        kernel, (round(middle - dx), round(middle - dy)), (round(middle + dx), round(middle + dy)), 1.0, 1
    )
    return np.asarray(kernel / kernel.sum(), np.float32)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """JPEG bytes of an RGB image."""
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return data.tobytes()
