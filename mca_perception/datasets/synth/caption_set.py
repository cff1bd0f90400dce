"""A set of products with captions: pictures on plain ground, and what is seen on them in words (``pairs.jsonl``).

Words come from the picture, not from what is printed on the product: its kind, its size, and the colours that cover
most of it. So a small model can learn them, and texts that name kinds and colours find pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.pairs import PAIRS
from mca_perception.datasets.synth import writer
from mca_perception.datasets.synth.catalogue import Catalogue, Product
from mca_perception.datasets.synth.effects import encode_jpeg
from mca_perception.errors import DatasetError

__all__ = ["VOCABULARY", "CaptionSettings", "captions", "colours_of", "write_captions"]

VOCABULARY = "vocabulary.spm"
SETTINGS_FILE = "synth-captions.json"
IMAGES = "images"
PIECES = 1000
VIEWS = 2
# Names by hue in degrees, where a colour has one; the first bound above a hue names it.
_HUES = (
    (15, "red"),
    (40, "orange"),
    (68, "yellow"),
    (160, "green"),
    (195, "turquoise"),
    (255, "blue"),
    (290, "purple"),
    (335, "pink"),
    (361, "red"),
)
_DARK, _LIGHT, _PALE, _BROWN = 0.22, 0.82, 0.18, 0.55
_SECOND_SHARE = 0.2
_THINGS = {
    "box": ("box", "carton"),
    "book": ("book",),
    "bottle": ("bottle",),
    "can": ("can", "tin"),
    "jar": ("jar",),
    "pouch": ("pouch", "bag"),
    "tube": ("tube",),
    "blister": ("blister pack", "card"),
    "mailer": ("mailer", "envelope"),
}
_SMALL_CM, _LARGE_CM = 9.0, 17.0
_TALL, _WIDE = 1.8, 0.75


@dataclass(frozen=True)
class CaptionSettings:
    """Everything that decides the content of a set.

    Attributes:
        out: its folder.
        count: products.
        seed: of products and pictures.
        validation_share: of the products, in the split ``val``.
    """

    out: Path
    count: int
    seed: int
    validation_share: float = 0.1

    def check(self) -> None:
        """Raise DatasetError for settings out of range."""
        writer.check_count("--count", self.count)
        writer.check_seed("--seed", self.seed)
        if not 0 < self.validation_share < 1:
            raise DatasetError(f"--val {self.validation_share:g}: must be above 0 and below 1")


def write_captions(
    settings: CaptionSettings, workers: int = 1, progress: writer.Progress | None = None
) -> dict[str, Any]:
    """Write pictures, captions, and a vocabulary made of the captions; goes on with a set that is not complete.

    Returns:
        Figures: products, pictures, captions, words.

    Raises:
        DatasetError: settings out of range, the folder holds something else, or sentencepiece is not installed.
    """
    settings.check()
    writer.check_count("--workers", workers, writer.MAX_WORKERS)
    record = {"command": "captions", **asdict(settings)}
    del record["out"]
    writer.claim_folder(settings.out, record, SETTINGS_FILE)
    (settings.out / IMAGES).mkdir(exist_ok=True)
    started = perf_counter()
    catalogue = Catalogue(settings.seed, settings.count)
    results = writer.run_parallel(
        partial(_write_product, settings), range(settings.count), settings.count, catalogue, workers, progress
    )
    lines = [line for _, lines in sorted(results) for line in lines]
    texts = sorted({line["text"] for line in lines})
    vocabulary = _vocabulary(texts)
    writer.write_bytes(settings.out / VOCABULARY, vocabulary)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    writer.write_bytes(settings.out / PAIRS, content.encode())
    return {
        "folder": str(settings.out),
        "products": settings.count,
        "pictures": len({line["image"] for line in lines}),
        "captions": len(texts),
        "validation_products": len({line["item"] for line in lines if line["split"] == "val"}),
        "seconds": round(perf_counter() - started, 1),
    }


def captions(product: Product, picture: NDArray[np.uint8], rng: np.random.Generator) -> list[str]:
    """Three captions of a picture uint8 ``[H, W, 3]`` of a product, from short to full."""
    colours = colours_of(picture)
    thing = str(rng.choice(_THINGS[product.kind]))
    width, height, _ = product.size
    size = "small " if max(width, height) < _SMALL_CM else "large " if max(width, height) > _LARGE_CM else ""
    shape = "tall " if height / width > _TALL else "wide " if height / width < _WIDE else ""
    both = " and ".join(colours)
    return [
        f"{colours[0]} {thing}",
        f"a {size}{both} {thing}",
        f"a {size}{shape}{both} {thing} of {product.design.title.lower()}",
    ]


def colours_of(picture: NDArray[np.uint8]) -> list[str]:
    """Names of the one or two colours that cover most of what stands out from a plain light ground.

    Args:
        picture: uint8 ``[H, W, 3]`` RGB.
    """
    small = cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA)
    ground = np.median(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]), axis=0)
    # The shadow is grey and lighter than half the ground: it does not stand out.
    stands_out = np.abs(small - ground).max(axis=2) > 40
    pixels = small[stands_out] if stands_out.any() else small.reshape(-1, 3)
    hsv = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[0]
    names, counts = np.unique([_name(*values) for values in hsv.tolist()], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    second = [names[i] for i in order[1:2] if counts[i] >= _SECOND_SHARE * len(pixels)]
    return [str(name) for name in (names[order[0]], *second)]


def _name(hue: float, saturation: float, value: float) -> str:
    if value < _DARK:
        return "black"
    if saturation < _PALE:
        return "white" if value > _LIGHT else "grey"
    name = next(name for bound, name in _HUES if hue < bound)
    return "brown" if name in ("orange", "red") and value < _BROWN and saturation < 0.75 else name


def _write_product(
    settings: CaptionSettings, catalogue: Catalogue, index: int
) -> tuple[int, list[dict[str, str]]]:
    """Worker task: pictures of one product, and their lines of ``pairs.jsonl``."""
    product = catalogue.product(index)
    rng = np.random.default_rng([settings.seed, index, 11])
    split = "val" if rng.random() < settings.validation_share else "train"
    lines = []
    for number in range(1, VIEWS + 1):
        name = f"{IMAGES}/{index:06d}-{number}.jpg"
        picture = writer.reference_image(catalogue, product, number)
        if not (settings.out / name).exists():
            writer.write_bytes(settings.out / name, encode_jpeg(picture, 90))
        texts = captions(product, picture, rng)
        lines += [{"image": name, "text": text, "item": name, "split": split} for text in texts]
    return index, lines


def _vocabulary(texts: Sequence[str]) -> bytes:
    """A SentencePiece model of the captions, with the pieces that BEiT-3's tokenizer expects."""
    try:
        from sentencepiece import SentencePieceTrainer
    except ModuleNotFoundError as error:
        raise DatasetError(
            "a vocabulary needs sentencepiece: pip install -c constraints.txt sentencepiece"
        ) from error
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
