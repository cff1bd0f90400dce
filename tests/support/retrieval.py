"""Encoders and stores for tests of retrieval: clusters of random vectors, and a bundle that knows colours."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sentencepiece import SentencePieceTrainer

from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.deploy.bundle import write_bundle
from mca_perception.retrieval.bundle import RetrievalBundle
from mca_perception.retrieval.store import ImageRecord, RetrievalStore
from tests.support.bundles import PALETTE
from tests.support.datasets import write_image

IMAGE_MODEL = "0123456789abcdef"
DIMENSION = 24


class ClusterEncoder:
    """Texts are bags of cluster names, ``c0`` to ``c99``; a text is the sum of its clusters' centres.

    Images are uint8 arrays; their mean colour seeds a vector.
    """

    def __init__(self, image_fingerprint: str = IMAGE_MODEL, text_fingerprint: str = "text0") -> None:
        self.image_fingerprint, self.text_fingerprint = image_fingerprint, text_fingerprint
        self.name, self.dimension = f"clusters@{text_fingerprint}", DIMENSION
        self.encoded: list[str] = []
        self.centres = unit(np.random.default_rng(7).normal(size=(100, DIMENSION)))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.encoded += texts
        return unit(np.stack([self._text(text) for text in texts]))

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        seeds = [zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images]
        return unit(np.stack([np.random.default_rng(seed).normal(size=DIMENSION) for seed in seeds]))

    def _text(self, text: str) -> NDArray[np.float64]:
        known = [word.strip(".,").casefold() for word in text.split()]
        rows = [self.centres[int(word[1:]) % 100] for word in known if word[:1] == "c" and word[1:].isdigit()]
        noise = np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSION)
        return np.sum(rows, axis=0) if rows else noise


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def cluster_vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors ``[count, DIMENSION]`` about the centres of :class:`ClusterEncoder`."""
    rng = np.random.default_rng(seed)
    centres = ClusterEncoder().centres[rng.integers(0, 100, count)]
    return unit(centres + 0.15 * rng.normal(size=(count, DIMENSION)))


def cluster_store(folder: Path, count: int, *, dtype: str = "float32", seed: int = 0) -> RetrievalStore:
    """A store of that many cluster vectors, opened for writing; image ids are ``i0``, ``i1`` and so on."""
    store = RetrievalStore.write(folder, image_model=IMAGE_MODEL, dimension=DIMENSION, dtype=dtype)
    grow(store, count, seed)
    return store


def grow(store: RetrievalStore, count: int, seed: int = 0) -> None:
    """Append cluster vectors."""
    first = store.count
    records = [ImageRecord(f"i{first + i}", f"/pictures/{first + i}.jpg") for i in range(count)]
    store.append(records, cluster_vectors(count, seed))


WORDS = ("red", "green", "blue", "yellow", "magenta", "cyan")

_IMAGE_GRAPH = """
<ir_version: 9, opset_import: ["" : 17]>
image (float[N, 3, S, S] images) => (float[N, 3] embeddings) {
  colour = ReduceMean <axes = [2, 3], keepdims = 0> (images)
  embeddings = LpNormalization <axis = 1, p = 2> (colour)
}
"""
# The sum of the vectors of the tokens, without padding.
_TEXT_GRAPH = """
<ir_version: 9, opset_import: ["" : 17]>
text (int64[N, L] text_ids, bool[N, L] padding_mask) => (float[N, 3] embeddings)
<float[ROWS, 3] table = {TABLE}>
{
  last = Constant <value = int64[1] {-1}> ()
  one = Constant <value = int64[1] {1}> ()
  vectors = Gather <axis = 0> (table, text_ids)
  real = Not (padding_mask)
  weight = Cast <to = 1> (real)
  column = Unsqueeze (weight, last)
  kept = Mul (vectors, column)
  total = ReduceSum <keepdims = 0> (kept, one)
  embeddings = LpNormalization <axis = 1, p = 2> (total)
}
"""


def write_colour_encoder(folder: Path, *, with_tokenizer: bool = True) -> RetrievalBundle:
    """A bundle that knows six colours: an image is its mean colour, a text the sum of the colours it names."""
    tokenizer_file = folder.with_name(f"{folder.name}.spm")
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([f"a {word} picture of the sea" for word in WORDS] * 4),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        user_defined_symbols=list(WORDS),
    )
    tokenizer_file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer_file.write_bytes(model.getvalue())
    tokenizer = BEiT3Tokenizer(tokenizer_file)
    table = np.full((tokenizer.vocab_size, 3), 1e-4)
    for word in WORDS:
        table[tokenizer.encode(word)[-2]] = np.array(PALETTE[word]) / 127.5 - 1
    numbers = ", ".join(f"{value:.6f}" for value in table.ravel())
    text = _TEXT_GRAPH.replace("ROWS", str(len(table))).replace("TABLE", numbers)
    graphs = {
        "image.onnx": onnx.parser.parse_model(_IMAGE_GRAPH).SerializeToString(),
        "text.onnx": onnx.parser.parse_model(text).SerializeToString(),
    }
    half = [0.5, 0.5, 0.5]
    outputs = [{"name": "embeddings", "dtype": "float32", "shape": ["N", 3]}]
    fields = {
        "name": "colours",
        "version": "1",
        "created": "2026-01-01T00:00:00+00:00",
        "licence": "Apache-2.0",
        "backbone": {"name": "colours", "img_size": 8, "patch_size": 8, "embed_dim": 3, "parameters": 0},
        "preprocessing": {"mean": half, "std": half, "channel_order": "RGB"},
        "graphs": {
            "image": {
                "file": "image.onnx",
                "inputs": [{"name": "images", "dtype": "float32", "shape": ["N", 3, 8, 8]}],
                "outputs": outputs,
            },
            "text": {
                "file": "text.onnx",
                "inputs": [
                    {"name": "text_ids", "dtype": "int64", "shape": ["N", "L"]},
                    {"name": "padding_mask", "dtype": "bool", "shape": ["N", "L"]},
                ],
                "outputs": outputs,
            },
        },
        "retrieval": {
            "image_size": 8,
            "text_length": 32,
            "embedding_dim": 3,
            "logit_scale": 14.0,
            "tokenizer": {
                "sha256": hashlib.sha256(model.getvalue()).hexdigest(),
                "file": "tokenizer.spm" if with_tokenizer else None,
            },
        },
    }
    files: dict[str, Any] = {**graphs, **({"tokenizer.spm": tokenizer_file} if with_tokenizer else {})}
    return write_bundle(folder, fields, files, RetrievalBundle)


def write_colour_photos(folder: Path, each: int = 3, size: int = 24) -> Path:
    """Noisy plain pictures of the six colours, ``red/0.png`` and so on, and a broken one."""
    rng = np.random.default_rng(0)
    for word in WORDS:
        for number in range(each):
            noise = rng.integers(-20, 21, (size, size + number, 3))
            picture = np.clip(np.array(PALETTE[word]) + noise, 0, 255).astype(np.uint8)
            write_image(folder / word / f"{number}.png", picture)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8broken")
    return folder


def write_atomic(folder: Path, photos: Path) -> Path:
    """A data set in AToMiC's layout of :func:`write_colour_photos`: a text per colour; photo 2 belongs to train."""
    import pyarrow
    from pyarrow import parquet

    files = [*sorted(photos.rglob("*.png")), photos / "broken.jpg"]
    images = [
        {
            "image_id": file.relative_to(photos).as_posix(),
            "language": ["en"],
            "caption_reference_description": [f"a {file.parent.name} picture"],
            "image": {"bytes": file.read_bytes(), "path": None},
        }
        for file in files
    ]
    texts, qrels = [], {"train": [], "validation": []}
    for number, word in enumerate(WORDS):
        texts.append(
            {
                "text_id": f"projected-{number:03d}",
                "page_title": word.capitalize(),
                "section_title": "Introduction",
                "hierachy": ["Colours", word.capitalize()],
                "context_section_description": f"A {word} picture of the sea.",
                "context_page_description": "About colours.",
            }
        )
        for photo in range(3):
            split = "train" if photo == 2 else "validation"
            pair = {
                "text_id": f"projected-{number:03d}",
                "Q0": "Q0",
                "image_id": f"{word}/{photo}.png",
                "rel": 1,
            }
            qrels[split].append(pair)
    tables = {"images/0": images[:10], "images/1": images[10:], "texts/0": texts}
    tables |= {f"qrels/{split}-0": pairs for split, pairs in qrels.items()}
    for name, rows in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder
