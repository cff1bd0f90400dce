"""Opened packages: boxes with flaps or without a lid, open books, torn or empty bags, bottles without a cap."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth import textures as tx
from mca_perception.datasets.synth.catalogue import Model
from mca_perception.datasets.synth.defect_items import Item, Panel, PanelModel
from mca_perception.datasets.synth.design import KRAFT
from mca_perception.datasets.synth.shapes import FACES, BoxModel, RoundModel, Surface
from mca_perception.datasets.synth.sheets import SheetModel, height_levels
from mca_perception.datasets.synth.textures import Color, Image

Vector = NDArray[np.float64]
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def plain_surface(color: Color, rng: np.random.Generator, size: int = 64, grain: float = 0.04) -> Surface:
    """Unprinted material with a slight grain."""
    field = 1 + grain * tx.noise(rng, size, size, 2) + grain * tx.noise(rng, size, size, 4)
    return Surface.of(tx.clip8(np.array(color, np.float32) * field[..., None]))


def paper_surface(rng: np.random.Generator, rows: int = 160, columns: int = 120) -> Surface:
    """A page or leaflet: lines of print, sometimes a figure."""
    paper = tx.hsv(0.12, rng.uniform(0, 0.08), rng.uniform(0.88, 0.98))
    image = np.empty((rows, columns, 3), np.uint8)
    image[:] = paper
    ink = (45, 45, 48)
    for start in (0.08, 0.52):
        box = (columns * 0.1, rows * start, columns * 0.9, rows * (start + 0.4))
        if rng.random() < 0.3:
            tone = tx.hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.4, 0.9))
            cv2.rectangle(image, tuple(map(int, box[:2])), tuple(map(int, box[2:])), tone, -1)
        else:
            tx.draw_lines(image, rng, box, ink, int(rng.integers(5, 10)))
    return Surface.of(image)


def open_box(model: BoxModel, rng: np.random.Generator, *, lid: bool = True) -> PanelModel:
    """A carton whose largest or end face stands open; without ``lid`` the face is gone, flaps and all."""
    face = str(rng.choice(["front", "top", "bottom", "right", "left"], p=[0.3, 0.3, 0.15, 0.15, 0.1]))
    half = np.asarray(model.size) / 2
    board = tx.mix(KRAFT, tx.hsv(rng.random(), 0.04, 0.85), float(rng.choice([0.0, 0.35, 0.9])))
    inside = plain_surface(board, rng)
    outer, inner = [], []
    for name, (signs, normal) in FACES.items():
        if name == face:
            continue
        corners = np.asarray(signs, np.float64) * half
        outer.append(Panel(corners, np.asarray(normal, np.float64), model.faces[name]))
        inner.append(Panel(corners[[1, 0, 3, 2]], -np.asarray(normal, np.float64), inside, True, 0.62))
    signs, normal = FACES[face]
    opening, outward = np.asarray(signs, np.float64) * half, np.asarray(normal, np.float64)
    depth = float(np.abs(outward) @ half) * 2
    filled = rng.random() < 0.65
    contents = []
    if filled:
        sunk = opening - outward * depth * rng.uniform(0.1, 0.6)
        shrunk = sunk.mean(0) + (sunk - sunk.mean(0)) * rng.uniform(0.78, 0.97)
        contents.append(Panel(shrunk, outward, _contents_surface(rng), True, 0.85))
    # The far inner sides, the contents, then what the box shows from outside.
    inner.sort(key=lambda panel: float(panel.normal @ outward) < 0.5)
    flaps = _flaps(opening, outward, depth, model.faces[face], board, rng) if lid else ()
    return PanelModel(model.size, (*inner, *contents, *outer), flaps, model.gloss)


def _contents_surface(rng: np.random.Generator) -> Surface:
    """What lies in a package: bubble wrap, a plain product, paper or moulded pulp."""
    kind = int(rng.integers(4))
    if kind == 0:
        return paper_surface(rng, 96, 96)
    color = tx.hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.15, 0.95))
    image = plain_surface(color, rng, 96, 0.08).levels[0].copy()
    if kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            centre = tuple(int(v) for v in rng.integers(16, 80, 2))
            tone = tx.hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 0.9))
            cv2.circle(image, centre, int(rng.integers(8, 26)), tone, -1, cv2.LINE_AA)
    elif kind == 2:
        y, x = np.mgrid[0:96, 0:96].astype(np.float32)
        bubbles = 1 + 0.25 * np.cos(x * 0.8) * np.cos(y * 0.8)
        image = tx.clip8(np.array((205, 212, 216), np.float32) * bubbles[..., None])
    return Surface.of(image)


def _flaps(
    opening: Vector, outward: Vector, depth: float, art: Surface, board: Color, rng: np.random.Generator
) -> tuple[Panel, ...]:
    """Flaps hinged on one, two or all four edges of the opening, each bent outwards by its own angle."""
    edges = list(rng.permutation(4)[: int(rng.choice([1, 2, 4], p=[0.35, 0.35, 0.3]))])
    inside = plain_surface(board, rng)
    printed = art.levels[0][:, :, :3]
    outside = Surface.of(np.ascontiguousarray(printed[: max(12, printed.shape[0] // 2)]))
    flaps: list[Panel] = []
    for edge in edges:
        whole = len(edges) == 1
        angle = float(rng.uniform(0.35, 2.9))
        flaps += hinged(
            opening, outward, int(edge), angle, outside, inside, rng.uniform(0.8, 1.0) if whole else 0.5
        )
    return tuple(flaps)


def hinged(
    opening: Vector, outward: Vector, edge: int, angle: float, outside: Surface, inside: Surface, share: float
) -> list[Panel]:
    """Both sides of a flap on an edge of an opening.

    Args:
        opening: corners ``[4, 3]``.
        outward: its unit normal.
        edge: from corner ``edge`` to the next.
        angle: 0 is closed, pi / 2 sticks out, pi lies folded back beside the opening.
        outside: texture of the side that shows when it is closed.
        inside: of the other side.
        share: its length as a share of the opening.
    """
    first, second = opening[edge], opening[(edge + 1) % 4]
    across = opening[(edge + 3) % 4] - first
    length = float(np.linalg.norm(across))
    closed = across / length
    direction = np.cos(angle) * closed + np.sin(angle) * outward
    normal = np.cos(angle) * outward - np.sin(angle) * closed
    tip = direction * length * share
    corners = np.stack([first + tip, second + tip, second, first])
    back = corners[[1, 0, 3, 2]]
    return [Panel(corners, normal, outside, True), Panel(back, -normal, inside, True, 0.9)]


def open_book(model: BoxModel, rng: np.random.Generator) -> PanelModel:
    """A book whose cover, and often a few leaves, stand off the block of pages."""
    half = np.asarray(model.size) / 2
    panels = [
        Panel(np.asarray(signs, np.float64) * half, np.asarray(normal, np.float64), model.faces[name])
        for name, (signs, normal) in FACES.items()
        if name != "front"
    ]
    signs, normal = FACES["front"]
    opening, outward = np.asarray(signs, np.float64) * half, np.asarray(normal, np.float64)
    panels.append(Panel(opening, outward, paper_surface(rng), True))
    angle = float(rng.uniform(0.5, 2.9))
    flaps = hinged(opening, outward, 3, angle, model.faces["front"], plain_surface((236, 232, 222), rng), 1.0)
    for _ in range(int(rng.integers(0, 3))):
        page = paper_surface(rng)
        flaps += hinged(opening, outward, 3, float(rng.uniform(0.15, angle)), page, page, 0.97)
    return PanelModel(model.size, tuple(panels), tuple(flaps), model.gloss)


def torn_sheet(
    model: SheetModel, rng: np.random.Generator, *, empty: bool = False
) -> tuple[SheetModel, SheetModel]:
    """A bag with a tear through its front or an open mouth, and the same bag with the tear in white on black.

    With ``empty`` nothing fills it any more: it hangs flat and crumpled, its mouth open.
    """
    art = model.front.levels[0].copy()
    rows, columns = art.shape[:2]
    hole = _tear(rows, columns, rng, mouth=empty or rng.random() < 0.4)
    hole[art[:, :, 3] < 128] = 0
    depths = tx.noise(rng, rows, columns, 4)
    dark = tx.hsv(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.05, 0.22))
    lining = np.array(dark, np.float32) * (1 + 0.25 * depths[..., None])
    if not empty and rng.random() < 0.7:
        goods = np.array(tx.hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.3, 0.95)), np.float32)
        lining = np.where((depths > -0.3)[..., None], goods * (1 + 0.1 * depths[..., None]), lining)
    art[:, :, :3] = np.where(hole[..., None] > 0, tx.clip8(lining), art[:, :, :3])
    rim = cv2.morphologyEx(hole, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    art[rim & (art[:, :, 3] > 127), :3] = tx.mix(_WHITE, (200, 196, 190), rng.random())
    front = Surface.of(art)
    heights = model.heights
    if empty:
        heights = height_levels(model.heights[0] * np.float32(0.15), front)
    crumple = float(rng.uniform(0.9, 1.6)) if empty else model.crumple
    torn = replace(model, front=front, heights=heights, crumple=crumple)
    coded = np.zeros_like(art)
    coded[:, :, 3] = art[:, :, 3]
    coded[hole > 0, :3] = 255
    black = model.back.levels[0].copy()
    black[:, :, :3] = 0
    marks = replace(torn, front=Surface.of(coded), back=Surface.of(black), gloss=0.0, crumple=0.0, film=0.0)
    return torn, marks


def _tear(rows: int, columns: int, rng: np.random.Generator, *, mouth: bool) -> Image:
    """Mask of a jagged tear: along the upper end, or across the front."""
    mask = np.zeros((rows, columns), np.uint8)
    count = int(rng.integers(7, 14))
    if mouth:
        x = np.linspace(rng.uniform(0.02, 0.2), rng.uniform(0.8, 0.98), count)
        low = rng.uniform(0.1, 0.3) * np.sin(np.linspace(0.15, 2.99, count)) + rng.normal(0, 0.02, count)
        high = np.full(count, 0.02) + rng.uniform(0, 0.03, count)
    else:
        start, end = rng.uniform(0.08, 0.3), rng.uniform(0.6, 0.92)
        x = np.linspace(start, end, count)
        slope = rng.uniform(-0.6, 0.6)
        middle = rng.uniform(0.3, 0.7) + slope * (x - x.mean())
        wide = rng.uniform(0.06, 0.18) * np.sin(np.linspace(0.1, 3.04, count))
        low, high = middle + wide + rng.normal(0, 0.025, count), middle - wide + rng.normal(0, 0.025, count)
    outline = np.concatenate([np.stack([x, high], 1), np.stack([x, low], 1)[::-1]])
    if not mouth and rng.random() < 0.5:
        outline = outline[:, ::-1]
    points = np.round(outline * (columns, rows)).astype(np.int32)
    cv2.fillPoly(mask, [points], 255)
    return mask


def uncapped(model: RoundModel, rng: np.random.Generator) -> tuple[RoundModel, RoundModel, RoundModel]:
    """A bottle, can or jar with its mouth open, the same with the mouth in white on black, and its cap alone."""
    share = float(rng.uniform(0.1, 0.2))
    places = np.linspace(0, 1, len(model.radii))

    def part(start: float, end: float) -> tuple[float, NDArray[np.float32], Image]:
        radii = np.interp(start + (end - start) * places, places, model.radii).astype(np.float32)
        wrap = model.wrap.levels[0]
        rows = slice(
            int(wrap.shape[0] * start), max(int(wrap.shape[0] * end), int(wrap.shape[0] * start) + 4)
        )
        return model.length * (end - start), radii, np.ascontiguousarray(wrap[rows])

    length, radii, wrap = part(share, 1.0)
    rim = tx.hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.6, 0.95))
    hole = np.empty((112, 112, 3), np.uint8)
    hole[:] = rim
    goods = tx.hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.04, 0.4))
    cv2.circle(hole, (56, 56), 44, goods, -1, cv2.LINE_AA)
    cv2.circle(hole, (56, 56), 44, tx.mix(goods, _BLACK, 0.6), 3, cv2.LINE_AA)
    body = replace(model, length=length, radii=radii, wrap=Surface.of(wrap), cap=Surface.of(hole))
    black, white = np.zeros((112, 112, 3), np.uint8), np.full((112, 112, 3), 255, np.uint8)
    marks = replace(
        body, wrap=Surface.of(np.zeros_like(wrap)), cap=Surface.of(white), base=Surface.of(black), gloss=0.0
    )
    length, radii, wrap = part(0.0, share)
    cap = replace(
        model, length=length, radii=radii, wrap=Surface.of(wrap), base=Surface.of(hole[::-1].copy())
    )
    return body, marks, cap


def opened(model: Model, kind: str, rng: np.random.Generator) -> tuple[Item, list[Item], str]:
    """A product whose package is open.

    Returns:
        The package, parts that came off it, and a word for the defect as ARMBench's sublabels have it.
    """
    if isinstance(model, RoundModel):
        body, marks, cap = uncapped(model, rng)
        return Item(body, kind, marks), [Item(cap, "jar", loose=True)], "open_bottle"
    if isinstance(model, SheetModel):
        empty = bool(rng.random() < 0.3)
        torn, tear = torn_sheet(model, rng, empty=empty)
        return Item(torn, kind, tear), [], "empty_bag" if empty else "torn_bag"
    if kind == "book":
        return Item(open_book(model, rng), kind), [], "open_book"
    if rng.random() < 0.25:
        return (
            Item(open_box(model, rng, lid=False), kind),
            [Item(_lid(model), "box", loose=True)],
            "partial_box",
        )
    return Item(open_box(model, rng), kind), [], "open_box"


def _lid(model: BoxModel) -> BoxModel:
    """The lid of a box that came off: flat, in the print of its front."""
    width, height, depth = model.size
    return BoxModel((width, height, min(depth, 1.2)), model.faces, model.gloss)
