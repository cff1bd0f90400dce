"""Procedural products: an unlimited catalogue in which product i depends on (catalogue seed, i) alone."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mca_perception.datasets.synth import models
from mca_perception.datasets.synth.camera import Camera, Matrix, Pose, Sprite, rotation
from mca_perception.datasets.synth.design import Design, make_design
from mca_perception.datasets.synth.photos import Photo, photo_model
from mca_perception.datasets.synth.shapes import BoxModel, Light, RoundModel, render_box, render_round
from mca_perception.datasets.synth.sheets import SheetModel, render_sheet
from mca_perception.datasets.synth.textures import Image
from mca_perception.errors import DatasetError

KINDS = ("box", "book", "bottle", "can", "jar", "pouch", "tube", "blister", "mailer")
_KIND_SHARE = (0.30, 0.10, 0.12, 0.06, 0.05, 0.14, 0.07, 0.09, 0.07)
# Products 4k to 4k + 3 may belong to one line (same brand and design): about a quarter of all follow another.
LINE_LENGTH = 4
_LINE_MATE_SHARE = 0.35
MAX_PRODUCTS = 1_000_000
_PRODUCT_CACHE = 10_000
Model = BoxModel | RoundModel | SheetModel


@dataclass(frozen=True)
class Product:
    """One catalogue entry. ``size`` = (w, h, d) in cm, d along the front's normal; ``weight`` in g."""

    index: int
    product_id: str
    kind: str
    size: tuple[float, float, float]
    weight: float
    description: str
    design: Design
    model_seed: int
    photo: Photo | None = None

    def manifest_entry(self) -> dict[str, object]:
        """Fields of ARMBench's container.json."""
        width, height, depth = (round(value, 1) for value in self.size)
        return {
            "description": self.description,
            "weight": {"value": round(self.weight), "unit": "grams"},
            "dimensions": {"length": height, "width": width, "height": depth, "unit": "centimeters"},
        }


class Catalogue:
    """``size`` products, made on demand; the last ``cache_size`` models (textures) are kept in memory."""

    def __init__(
        self,
        seed: int,
        size: int,
        photos: Sequence[Photo] = (),
        photo_share: float | None = None,
        *,
        cache_size: int = 256,
    ) -> None:
        """Make a catalogue of ``size`` procedural products followed by one product per photo.

        ``photo_share`` of the products that :meth:`draw` returns are photos; by default all are equally likely.

        Raises:
            DatasetError: size outside 0..1,000,000, nothing in the catalogue, or a share that it cannot give.
        """
        if not 0 <= size <= MAX_PRODUCTS or size + len(photos) == 0:
            raise DatasetError(
                f"catalogue size {size}: must be 1 to {MAX_PRODUCTS:,}; choose another --products"
            )
        if photo_share is not None and not (0 <= photo_share <= 1 and size and photos):
            raise DatasetError(
                f"--photo-share {photo_share:g}: must be 0 to 1, and needs both --catalog and --products above 0"
            )
        self.seed = seed
        self._photo_share = photo_share
        self._procedural = size
        self._photos = tuple(photos)
        self._cache: OrderedDict[int, Model] = OrderedDict()
        self._cache_size = cache_size
        self._products: dict[int, Product] = {}
        self._tag = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=5).digest(), "big")

    def __len__(self) -> int:
        return self._procedural + len(self._photos)

    def product(self, index: int) -> Product:
        """Product ``index``.

        Raises:
            DatasetError: index outside the catalogue.
        """
        if not 0 <= index < len(self):
            raise DatasetError(f"product {index}: the catalogue has {len(self)} products, indices start at 0")
        product = self._products.get(index)
        if product is None:
            product = (
                self._photo_product(index) if index >= self._procedural else self._procedural_product(index)
            )
            if len(self._products) < _PRODUCT_CACHE:
                self._products[index] = product
        return product

    def _procedural_product(self, index: int) -> Product:
        variant_rng = np.random.default_rng([self.seed, index, 1])
        line = self._line(index)
        line_rng = np.random.default_rng([self.seed, line, 2])
        kind = str(line_rng.choice(KINDS, p=_KIND_SHARE))
        size = models.draw_size(line_rng, kind)
        design = make_design(line_rng, variant_rng, kind)
        density = float(line_rng.uniform(0.15, 1.0))
        description = f"{design.brand} {design.adjective} {design.title}, {design.size_text}"
        weight = float(np.prod(size)) * density
        return Product(
            index,
            self._identifier(index, kind),
            kind,
            size,
            weight,
            description,
            design,
            int(line_rng.integers(2**31)),
        )

    @property
    def photos(self) -> tuple[Photo, ...]:
        """Photos that products are cut out of."""
        return self._photos

    def recipe(self) -> tuple[int, int, tuple[Photo, ...], float | None]:
        """Arguments that make an equal catalogue in another process."""
        return self.seed, self._procedural, self._photos, self._photo_share

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Indices of ``count`` random products."""
        if self._photo_share is None:
            return [int(index) for index in rng.integers(len(self), size=count)]
        photo = rng.random(count) < self._photo_share
        photos = self._procedural + rng.integers(len(self._photos), size=count)
        return [int(index) for index in np.where(photo, photos, rng.integers(self._procedural, size=count))]

    def model(self, product: Product) -> Model:
        """Geometry and textures of a product (cached)."""
        model = self._cache.get(product.index)
        if model is None:
            model = photo_model(product.photo, product.size) if product.photo else models.build(product)
            self._cache[product.index] = model
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(product.index)
        return model

    def render_pose(
        self, product: Product, pose: Pose, camera: Camera, light: Light, rng: np.random.Generator
    ) -> Sprite:
        """Draw a product in a given pose; ``rng`` drives wrinkles and highlights only."""
        model = self.model(product)
        if isinstance(model, BoxModel):
            return render_box(model, pose, camera, light, rng)
        if isinstance(model, RoundModel):
            return render_round(model, pose, camera, light, rng)
        return render_sheet(model, pose, camera, light, rng)

    def render(
        self, product: Product, rng: np.random.Generator, size_px: int, *, upright: bool = False
    ) -> Image:
        """Draw a product alone in a random pose.

        Args:
            product: entry of this catalogue.
            rng: source of the pose, the light and small variations.
            size_px: about the longest side of the result, px.
            upright: show the front, nearly straight.

        Returns:
            RGBA uint8 ``[h, w, 4]``, straight alpha, cropped to the silhouette.

        Raises:
            DatasetError: size_px outside 8..4096.
        """
        if not 8 <= size_px <= 4096:
            raise DatasetError(f"size_px {size_px}: must be 8 to 4096")
        orientation = _front_view(rng) if upright else random_orientation(product.kind, rng, 0.35)
        light = Light(
            rotation((rng.normal(), rng.normal(), 0.3), rng.uniform(0, 0.7)) @ np.array([0.0, 0.0, -1.0]),
            float(rng.uniform(0.2, 1)),
        )
        reach = 0.92 * float(np.abs(orientation[:2] @ np.diag(product.size)).sum(1).max())
        distance = 6.0 * reach + max(product.size)
        camera = Camera(size_px * distance / reach, (0.0, 0.0), np.zeros(3), np.eye(3))
        sprite = self.render_pose(
            product, Pose(orientation, np.array([0.0, 0.0, distance])), camera, light, rng
        )
        solid = sprite.rgba[:, :, 3] > 0
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        return np.ascontiguousarray(sprite.rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    def _line(self, index: int) -> int:
        """First product of the line that ``index`` belongs to: runs of up to four line-mates."""
        line = index
        while line % LINE_LENGTH and np.random.default_rng([self.seed, line, 0]).random() < _LINE_MATE_SHARE:
            line -= 1
        return line

    def _identifier(self, index: int, kind: str) -> str:
        if kind == "book":
            return f"0{index:06d}{self._tag:013d}"
        return f"SYN-{index:06d}-{self._tag:010x}"

    def _photo_product(self, index: int) -> Product:
        photo = self._photos[index - self._procedural]
        rng = np.random.default_rng(
            [int.from_bytes(hashlib.blake2b(photo.product_id.encode(), digest_size=6).digest(), "big"), 5]
        )
        side = models.draw_side(rng) * 0.9
        width, height = side * photo.aspect**0.5, side / photo.aspect**0.5
        design = make_design(rng, rng, "photo")
        description = photo.product_id.replace("/", " ").replace("-", " ").replace("_", " ")
        size = (width, height, min(width, height) * float(rng.uniform(0.15, 0.4)))
        return Product(
            index, photo.product_id, "photo", size, float(np.prod(size)) * 0.6, description, design, 0, photo
        )


def random_orientation(kind: str, rng: np.random.Generator, tilt: float = 0.16) -> Matrix:
    """Resting orientation (object to world): a side up, any heading, a tilt of about ``tilt`` radians."""
    draw = rng.random()
    up = np.eye(3)
    if kind == "box":
        if draw > 0.8:
            up = rotation((1, 0, 0), np.pi / 2 * float(rng.choice([-1, 1])))
        elif draw > 0.55:
            up = rotation((0, 1, 0), np.pi / 2 * float(rng.choice([-1, 1])))
        elif draw > 0.4:
            up = rotation((0, 1, 0), np.pi)
    elif kind == "book":
        up = (
            np.eye(3)
            if draw < 0.6
            else rotation((0, 1, 0), np.pi)
            if draw < 0.86
            else rotation((0, 1, 0), np.pi / 2 * float(rng.choice([-1, 1])))
        )
    elif kind in ("bottle", "can", "jar"):
        standing = draw < (0.2 if kind == "bottle" else 0.45)
        up = (
            rotation((1, 0, 0), np.pi / 2 if rng.random() < 0.8 else -np.pi / 2)
            if standing
            else rotation((0, 1, 0), rng.uniform(0, 2 * np.pi))
        )
    elif draw > 0.68 and kind != "photo":
        up = rotation((0, 1, 0), np.pi)
    heading = rotation((0, 0, 1), rng.uniform(0, 2 * np.pi))
    angle = min(abs(float(rng.normal(0, tilt))) * (2.2 if rng.random() < 0.18 else 1.0), 0.75)
    lean = rotation((rng.normal(), rng.normal(), 1e-3), angle)
    return lean @ heading @ up


def _front_view(rng: np.random.Generator) -> Matrix:
    return rotation((0, 0, 1), rng.normal(0, 0.05)) @ rotation(
        (rng.normal(), rng.normal(), 1e-3), abs(rng.normal(0, 0.12))
    )
