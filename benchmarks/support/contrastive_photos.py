"""Photos of the Grocery Store data as tokens in front of a backbone's last block, computed once and kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from mca_perception.backbone import BEiT3, create_backbone, normalise
from mca_perception.classification.recipe import ViewAugmentation
from mca_perception.classification.views import changed_view, plain_view
from mca_perception.cli import reports
from mca_perception.datasets.grocery import read_grocery
from mca_perception.datasets.images import read_rgb
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import McaError

NOVEL_CLASSES = 20
LEAST_NOVEL_PHOTOS = 20
GRID = 2
CHUNK = 64


class Photos(NamedTuple):
    """Kept tokens and labels.

    Attributes:
        clean: float16 ``[N, L, D]`` of the photos as they are, CLS first.
        changed: float16 ``[V, N, L, D]`` of augmented versions; zeros where a photo trains nothing.
        labels: ``[N]`` int64, those of the known classes first.
        train: ``[N]`` bool, the photo is of the list `train`.
        known: number of classes to train on; the others are for few-shot episodes.
    """

    clean: NDArray[np.float16]
    changed: NDArray[np.float16]
    labels: NDArray[np.int64]
    train: NDArray[np.bool_]
    known: int

    @property
    def train_indices(self) -> NDArray[np.int64]:
        """Training photos of known classes."""
        return np.flatnonzero(self.train & (self.labels < self.known))

    @property
    def val_indices(self) -> NDArray[np.int64]:
        """Photos of `val` of known classes."""
        return np.flatnonzero(~self.train & (self.labels < self.known))

    @property
    def novel_indices(self) -> NDArray[np.int64]:
        """Photos of the classes that are never trained on."""
        return np.flatnonzero(self.labels >= self.known)


def open_backbone(bundle: ModelBundle) -> BEiT3:
    """The bundle's backbone with its weights."""
    backbone = create_backbone(bundle.manifest.backbone.name, img_size=bundle.manifest.backbone.img_size)
    assert isinstance(backbone, BEiT3)
    prefix = "backbone."
    stored = load_file(bundle.path / "weights.safetensors")
    backbone.load_state_dict(
        {name.removeprefix(prefix): t.float() for name, t in stored.items() if name.startswith(prefix)}
    )
    return backbone.eval()


@torch.inference_mode()
def tokens_of(backbone: BEiT3, images: list[NDArray[np.uint8]]) -> NDArray[np.float16]:
    """Input of the last block, averaged over the cells of a grid; CLS first."""
    layers, parts = backbone.encoder.layers[:-1], []
    for start in range(0, len(images), CHUNK):
        batch = torch.from_numpy(np.stack(images[start : start + CHUNK]).transpose(0, 3, 1, 2).copy())
        pixels = normalise(batch, torch.device("cpu"), backbone.normalisation)
        side = pixels.shape[-1] // backbone.patch_size
        tokens = backbone._embed_images(pixels, (side, side), None)
        for layer in layers:
            tokens = layer(tokens, (("A", tokens.shape[1]),))
        cells = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        cells = nn.functional.adaptive_avg_pool2d(cells, GRID).flatten(2).transpose(1, 2)
        parts.append(torch.cat([tokens[:, :1], cells], 1).half().numpy())
    return np.concatenate(parts)


def load_photos(
    bundle: ModelBundle, backbone: BEiT3, data: Path, work: Path, *, size: int, versions: int, cells: int
) -> Photos:
    """Tokens of all photos, computed once per bundle, data and settings and kept in ``work``.

    Args:
        bundle: names the kept file.
        backbone: of the bundle.
        data: folder of the Grocery Store data set.
        work: folder of the kept file.
        size: pixels of a photo's side.
        versions: augmented versions of each training photo.
        cells: averages beside the CLS token, 1 or GRID^2.

    Raises:
        McaError: the size does not divide into patches and cells.
    """
    if size % backbone.patch_size or size // backbone.patch_size % GRID:
        raise McaError(f"--size {size} must be a multiple of {GRID * backbone.patch_size} pixels")
    items = [
        (next(iter(pick.views.values())), pick.product_id, split == "train")
        for split in ("train", "val")
        for pick in read_grocery(data, split).picks
    ]
    labels, known = split_classes([name for _, name, _ in items], [train for *_, train in items])
    train = np.array([is_train for *_, is_train in items])
    key = hashlib.sha256(f"{bundle.fingerprint} {input_hash(data)} {size} {versions}".encode())
    path = reports.new_folder(work) / f"tokens-{key.hexdigest()[:16]}.npz"
    if not path.is_file():
        images = [read_rgb(photo) for photo, *_ in items]
        clean = tokens_of(backbone, [plain_view(image, size) for image in images])
        changed = np.zeros((versions, *clean.shape), np.float16)
        wanted = np.flatnonzero(train & (labels < known))
        for version in range(versions):
            views = [
                changed_view(images[i], size, ViewAugmentation(), np.random.default_rng((version, int(i))))
                for i in wanted
            ]
            changed[version, wanted] = tokens_of(backbone, views)
            print(f"version {version + 1} of {versions} is kept", flush=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, clean=clean, changed=changed)
        part.replace(path)
    with np.load(path) as stored:
        clean, changed = (_cells(stored[name], cells) for name in ("clean", "changed"))
    return Photos(clean, changed, labels, train, known)


def _cells(tokens: NDArray[np.float16], cells: int) -> NDArray[np.float16]:
    """Tokens ``[..., 1 + GRID^2, D]`` as they are, or their cells averaged to one."""
    if cells == GRID**2:
        return tokens
    mean = tokens[..., 1:, :].mean(-2, keepdims=True, dtype=np.float32).astype(np.float16)
    return np.concatenate([tokens[..., :1, :], mean], axis=-2)


def split_classes(names: list[str], train: list[bool]) -> tuple[NDArray[np.int64], int]:
    """Class ids, known classes first, and the number of those; novel ones are drawn among the larger classes."""
    counts = {
        name: sum(t for n, t in zip(names, train, strict=True) if n == name) for name in sorted(set(names))
    }
    large = [name for name, count in counts.items() if count >= LEAST_NOVEL_PHOTOS]
    novel = {large[i] for i in np.random.default_rng(0).permutation(len(large))[:NOVEL_CLASSES]}
    order = [name for name in counts if name not in novel] + sorted(novel)
    ids = {name: number for number, name in enumerate(order)}
    return np.array([ids[name] for name in names]), len(order) - len(novel)


def input_hash(data: Path) -> str:
    """Of the lists that name photos and labels."""
    digest = hashlib.sha256()
    for name in ("classes.csv", "train.txt", "val.txt"):
        digest.update((data / name).read_bytes())
    return digest.hexdigest()
