"""Drawing primitives for printed surfaces: colours, noise, text, barcodes, logos, patterns, pictures.

All images are RGB uint8 ``[H, W, 3]``; all boxes are ``(x0, y0, x1, y1)`` in pixels. Everything is a
deterministic function of its arguments.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth.words import FILLER

Image = NDArray[np.uint8]
Field = NDArray[np.float32]
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

NOISE_SIZE = 512


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Return RGB 0..255 for hue 0..1 (wrapping), saturation and value 0..1."""
    pixel = np.array([[[(hue % 1.0) * 360.0, min(max(saturation, 0), 1), min(max(value, 0), 1)]]], np.float32)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255.0
    return int(red), int(green), int(blue)


def mix(first: Color, second: Color, share: float) -> Color:
    """Blend two colours; ``share`` 0 gives the first, 1 the second."""
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def luminance(color: Color) -> float:
    """Perceived brightness 0..1."""
    return (0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]) / 255.0


def readable_on(background: Color, rng: np.random.Generator) -> Color:
    """A text colour that contrasts with the background."""
    dark = luminance(background) > 0.5
    hue, saturation = rng.random(), rng.uniform(0.0, 0.9)
    return (
        hsv(hue, saturation, rng.uniform(0.05, 0.35))
        if dark
        else hsv(hue, saturation * 0.4, rng.uniform(0.9, 1.0))
    )


@lru_cache(maxsize=8)
def noise_tile(octave: int) -> Field:
    """Fixed noise ``[512, 512]`` float32 of mean 0, deviation 1; ``octave`` k has grains of about 2**k px."""
    rng = np.random.default_rng(7000 + octave)
    coarse = rng.standard_normal((NOISE_SIZE >> octave, NOISE_SIZE >> octave)).astype(np.float32)
    tile = cv2.resize(coarse, (NOISE_SIZE, NOISE_SIZE), interpolation=cv2.INTER_CUBIC)
    return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


def noise(rng: np.random.Generator, height: int, width: int, octave: int) -> Field:
    """A random window of :func:`noise_tile`, flipped at random; enlarged beyond 512 px."""
    tile = noise_tile(octave)
    if height > NOISE_SIZE or width > NOISE_SIZE:
        factor = max(height, width) / NOISE_SIZE
        window = noise(
            rng, min(NOISE_SIZE, round(height / factor)), min(NOISE_SIZE, round(width / factor)), octave
        )
        return np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    y = int(rng.integers(0, NOISE_SIZE - height + 1))
    x = int(rng.integers(0, NOISE_SIZE - width + 1))
    step_y, step_x = (1, -1)[int(rng.integers(2))], (1, -1)[int(rng.integers(2))]
    return tile[y : y + height, x : x + width][::step_y, ::step_x]


def clip8(values: NDArray[Any]) -> Image:
    """Round to uint8 with saturation."""
    return np.asarray(np.clip(values, 0, 255), np.uint8)


@lru_cache(maxsize=4)
def _face(name: str) -> cv2.FontFace:
    return cv2.FontFace(name)


_HERSHEY = (
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
)


@lru_cache(maxsize=2048)
def text_mask(text: str, font: int, weight: int) -> Image:
    """Coverage mask uint8 of one line of text, cropped tight; fonts 0..3 are outline, 4..7 stroke fonts.

    OpenCV 4 has stroke fonts only: labels then look plainer, and equal seeds give other bytes than with OpenCV 5.
    """
    canvas = np.zeros((64, 40 + 40 * len(text), 3), np.uint8)
    white = (255, 255, 255)
    if font < 4 and hasattr(cv2, "FontFace"):
        cv2.putText(canvas, text, (12, 44), white, _face("italic" if font == 3 else "sans"), 36, weight)
    else:
        thickness = 1 + weight // 250
        cv2.putText(canvas, text, (12, 44), _HERSHEY[font % 4], 1.2, white, thickness, cv2.LINE_AA)
    mask = canvas[:, :, 0]
    x, y, width, height = cv2.boundingRect(mask)
    return mask[y : y + height, x : x + width].copy() if width else np.zeros((4, 4), np.uint8)


def stamp(image: Image, mask: Image, x: int, y: int, color: Color, opacity: float = 1.0) -> None:
    """Paint ``color`` through a uint8 coverage mask placed at (x, y); parts outside the image are cut off."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + mask.shape[1], width), min(y + mask.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    share = mask[y0 - y : y1 - y, x0 - x : x1 - x, None].astype(np.float32) * (opacity / 255.0)
    region = image[y0:y1, x0:x1]
    region[:] = clip8(region + (np.array(color, np.float32) - region) * share)


def draw_text(
    image: Image,
    text: str,
    box: Box,
    color: Color,
    *,
    font: int = 0,
    weight: int = 500,
    align: float = 0.5,
    outline: Color | None = None,
) -> None:
    """Fit one line of text into ``box``, hardly stretched; ``align`` 0 is left, 1 is right."""
    mask = text_mask(text, font, weight)
    room_w, room_h = max(box[2] - box[0], 3.0), max(box[3] - box[1], 3.0)
    scale_y = room_h / mask.shape[0]
    scale_x = min(room_w / mask.shape[1], scale_y * 1.25)
    scale_y = min(scale_y, scale_x * 1.5)
    size = (max(2, round(mask.shape[1] * scale_x)), max(2, round(mask.shape[0] * scale_y)))
    mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8)
    x = round(box[0] + (room_w - size[0]) * align)
    y = round(box[1] + (room_h - size[1]) * 0.5)
    if outline is not None:
        halo = np.asarray(cv2.dilate(np.pad(mask, 3), np.ones((5, 5), np.uint8)), np.uint8)
        stamp(image, halo, x - 3, y - 3, outline)
    stamp(image, mask, x, y, color)


def draw_lines(image: Image, rng: np.random.Generator, box: Box, color: Color, rows: int) -> None:
    """Small print: ``rows`` lines of real but unimportant text, ragged on the right."""
    height = (box[3] - box[1]) / max(rows, 1)
    for row in range(rows):
        width = (box[2] - box[0]) * rng.uniform(0.55, 1.0)
        line = (box[0], box[1] + row * height, box[0] + width, box[1] + (row + 0.72) * height)
        draw_text(image, str(rng.choice(FILLER)), line, color, font=0, weight=400, align=0.0)


def draw_barcode(image: Image, rng: np.random.Generator, box: Box) -> None:
    """A white patch with random bars and a row of digits."""
    x0, y0, x1, y1 = (int(value) for value in box)
    if x1 - x0 < 12 or y1 - y0 < 8:
        return
    cv2.rectangle(image, (x0, y0), (x1, y1), (250, 250, 248), -1)
    bars = rng.random((x1 - x0 - 6) // 2 + 1) < 0.5
    strip = np.repeat(bars, 2)[: x1 - x0 - 6]
    foot = y1 - max(3, (y1 - y0) // 5)
    image[y0 + 2 : foot, x0 + 3 : x0 + 3 + len(strip)][:, strip] = 15
    draw_text(
        image, "".join(map(str, rng.integers(0, 10, 12))), (x0 + 3, foot + 1, x1 - 3, y1 - 1), (20, 20, 20)
    )


def star(
    cx: float, cy: float, radius: float, points: int, inner: float, turn: float = 0.0
) -> NDArray[np.int32]:
    """Polygon of a star (``inner`` < 1) or regular polygon (``inner`` = cos(pi / points))."""
    angles = turn + np.arange(points * 2) * np.pi / points
    radii = np.where(np.arange(points * 2) % 2 == 0, radius, radius * inner)
    corners = np.stack([cx + radii * np.cos(angles), cy + radii * np.sin(angles)], 1)
    return np.asarray(corners.round(), np.int32)


def draw_logo(
    image: Image,
    rng: np.random.Generator,
    kind: int,
    cx: float,
    cy: float,
    radius: float,
    first: Color,
    second: Color,
) -> None:
    """One of eight emblem kinds: disc, ring, star, polygon, crescent, bars, petals, shield."""
    centre, size = (round(cx), round(cy)), max(2, round(radius))
    line = cv2.LINE_AA
    if kind == 0:
        cv2.circle(image, centre, size, first, -1, line)
        cv2.circle(image, centre, max(1, size * 3 // 5), second, -1, line)
    elif kind == 1:
        cv2.circle(image, centre, max(2, size * 4 // 5), first, max(2, size // 4), line)
    elif kind == 2:
        cv2.fillPoly(
            image, [star(cx, cy, radius, int(rng.integers(5, 13)), 0.5, rng.random() * 6)], first, line
        )
    elif kind == 3:
        points = int(rng.integers(3, 7))
        cv2.fillPoly(
            image,
            [star(cx, cy, radius, points, float(np.cos(np.pi / points)), rng.random() * 6)],
            first,
            line,
        )
        cv2.circle(image, centre, max(1, size // 3), second, -1, line)
    elif kind == 4:
        cv2.circle(image, centre, size, first, -1, line)
        cv2.circle(
            image,
            (round(cx + radius * 0.4), round(cy - radius * 0.2)),
            max(1, size * 4 // 5),
            second,
            -1,
            line,
        )
    elif kind == 5:
        for bar in range(4):
            x = round(cx - radius + bar * radius * 0.55)
            top = round(cy + radius * (0.6 - 0.4 * bar))
            cv2.rectangle(image, (x, top), (x + max(1, round(radius * 0.35)), round(cy + radius)), first, -1)
    elif kind == 6:
        for petal in range(int(rng.integers(3, 8))):
            cv2.ellipse(image, centre, (size, max(1, size // 4)), petal * 53.0, 0, 360, first, -1, line)
        cv2.circle(image, centre, max(1, size // 3), second, -1, line)
    else:
        shape = np.array([[-0.8, -0.9], [0.8, -0.9], [0.8, 0.1], [0, 1], [-0.8, 0.1]]) * radius + (cx, cy)
        cv2.fillPoly(image, [shape.round().astype(np.int32)], first, line)
        cv2.circle(image, centre, max(1, size * 2 // 5), second, -1, line)


def gradient(height: int, width: int, first: Color, second: Color, angle: float) -> Image:
    """Linear colour ramp in the direction ``angle`` (radians)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = x / max(width, 1) * np.cos(angle) + y / max(height, 1) * np.sin(angle)
    low, high = float(ramp.min()), float(ramp.max())
    ramp = ((ramp - low) / max(high - low, 1e-6))[..., None]
    return clip8(np.array(first, np.float32) * (1 - ramp) + np.array(second, np.float32) * ramp)


def draw_pattern(image: Image, rng: np.random.Generator, kind: int, color: Color, pitch: float) -> None:
    """Cover the image with dots, checks, stripes, waves, zigzag, rings, crosses, confetti or a sunburst."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pitch = max(pitch, 5.0)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:
        value = 0.32 - np.hypot((u / pitch) % 1 - 0.5, (v / pitch) % 1 - 0.5)
    elif kind == 1:
        value = np.sin(u * np.pi / pitch) * np.sin(v * np.pi / pitch)
    elif kind == 2:
        value = rng.uniform(0.25, 0.6) - (u / pitch) % 1
    elif kind == 3:
        value = np.sin(2 * np.pi * (v / pitch + 0.35 * np.sin(u * 2 * np.pi / pitch / 2)))
    elif kind == 4:
        value = 0.4 - (v / pitch + np.abs((u / pitch) % 2 - 1)) % 1
    elif kind == 5:
        value = np.sin(2 * np.pi * np.hypot(x - width * rng.random(), y - height * rng.random()) / pitch)
    elif kind == 6:
        value = 0.1 - np.minimum(np.abs((u / pitch) % 1 - 0.5), np.abs((v / pitch) % 1 - 0.5))
    elif kind == 7:
        value = noise(rng, height, width, 3) - 0.9
    else:
        bearing = np.arctan2(y - height * rng.uniform(0.3, 0.8), x - width * rng.uniform(0.2, 0.8))
        value = np.sin(bearing * int(rng.integers(6, 16)))
    scale = pitch if kind not in (7,) else 2.0
    mask = clip8(np.clip(value * scale * 0.8 + 0.5, 0, 1) * 255)
    stamp(image, mask, 0, 0, color)


def draw_picture(
    image: Image, rng: np.random.Generator, kind: int, box: Box, colors: tuple[Color, ...]
) -> None:
    """An illustration inside ``box``: shaded spheres, leaves, hills, a gadget, a swirl of blobs or a cup."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    line = cv2.LINE_AA
    if kind == 0:
        for _ in range(int(rng.integers(2, 7))):
            radius = min(width, height) * rng.uniform(0.14, 0.32)
            _sphere(
                image,
                rng.uniform(x0 + radius, max(x1 - radius, x0 + radius + 1)),
                rng.uniform(y0 + radius, max(y1 - radius, y0 + radius + 1)),
                radius,
                colors[int(rng.integers(len(colors)))],
            )
    elif kind == 1:
        for _ in range(int(rng.integers(4, 10))):
            centre = (int(rng.uniform(x0, x1)), int(rng.uniform(y0, y1)))
            axes = (
                max(2, int(min(width, height) * rng.uniform(0.15, 0.4))),
                max(1, int(min(width, height) * rng.uniform(0.05, 0.14))),
            )
            turn, color = rng.uniform(0, 180), colors[int(rng.integers(len(colors)))]
            cv2.ellipse(image, centre, axes, turn, 0, 360, color, -1, line)
            tip = (int(axes[0] * np.cos(np.deg2rad(turn))), int(axes[0] * np.sin(np.deg2rad(turn))))
            cv2.line(
                image,
                (centre[0] - tip[0], centre[1] - tip[1]),
                (centre[0] + tip[0], centre[1] + tip[1]),
                mix(color, (0, 0, 0), 0.4),
                1,
                line,
            )
    elif kind == 2:
        for layer in range(3):
            x = np.linspace(x0, x1, 24)
            ridge = y0 + height * (
                0.3 + 0.2 * layer + 0.12 * np.sin(x / width * rng.uniform(4, 11) + rng.random() * 6)
            )
            hill = np.concatenate([np.stack([x, ridge], 1), [[x1, y1], [x0, y1]]]).round().astype(np.int32)
            cv2.fillPoly(image, [hill], mix(colors[layer % len(colors)], (10, 20, 30), 0.15 * layer), line)
        cv2.circle(
            image,
            (int(x0 + width * rng.uniform(0.2, 0.8)), int(y0 + height * 0.2)),
            max(2, int(min(width, height) * 0.12)),
            colors[-1],
            -1,
            line,
        )
    elif kind == 3:
        a, b = (
            (int(x0 + width * 0.2), int(y0 + height * 0.1)),
            (int(x1 - width * 0.2), int(y1 - height * 0.1)),
        )
        cv2.rectangle(image, a, b, (35, 35, 40), -1)
        inset = max(2, int(min(width, height) * 0.05))
        cv2.rectangle(image, (a[0] + inset, a[1] + inset), (b[0] - inset, b[1] - 3 * inset), colors[0], -1)
        cv2.circle(
            image, ((a[0] + b[0]) // 2, b[1] - int(1.5 * inset)), max(1, inset), (200, 200, 205), -1, line
        )
    elif kind == 4:
        for _ in range(int(rng.integers(3, 8))):
            points = star(
                rng.uniform(x0, x1),
                rng.uniform(y0, y1),
                min(width, height) * rng.uniform(0.15, 0.45),
                int(rng.integers(3, 9)),
                rng.uniform(0.4, 0.95),
                rng.random() * 6,
            )
            cv2.fillPoly(image, [points], colors[int(rng.integers(len(colors)))], line)
    else:
        body = np.array([[0.2, 0.3], [0.8, 0.3], [0.7, 0.95], [0.3, 0.95]]) * (width, height) + (x0, y0)
        cv2.fillPoly(image, [body.astype(np.int32)], colors[0], line)
        cv2.ellipse(
            image,
            (int(x0 + width * 0.5), int(y0 + height * 0.3)),
            (max(1, int(width * 0.3)), max(1, int(height * 0.09))),
            0,
            0,
            360,
            colors[-1],
            -1,
            line,
        )
        cv2.ellipse(
            image,
            (int(x0 + width * 0.8), int(y0 + height * 0.55)),
            (max(1, int(width * 0.13)), max(1, int(height * 0.15))),
            0,
            0,
            360,
            colors[0],
            max(2, int(width * 0.05)),
            line,
        )


def _sphere(image: Image, cx: float, cy: float, radius: float, color: Color) -> None:
    for step in range(6):
        share = step / 6
        centre = (round((cx - radius * 0.3 * share) * 8), round((cy - radius * 0.3 * share) * 8))
        tone = mix(mix(color, (0, 0, 0), 0.35), mix(color, (255, 255, 255), 0.55), share)
        cv2.circle(image, centre, max(1, round(radius * (1 - share) * 8)), tone, -1, cv2.LINE_AA, 3)
