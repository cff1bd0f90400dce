"""Training methods on real photos, at equal budgets: cross-entropy, SupCon, LaCViT, CLCE and SCL-RHE.

Small enough for a processor: all blocks of the bundle's backbone but the last are frozen, and the tokens that they
give for every photo and for a few augmented versions of it are kept, CLS and averages over 2 x 2 cells or the whole
photo (`--cells`). Every method trains the last block, the final normalisation and its own heads on two versions of
each photo, from the same weights, with as many photos, the same optimiser and schedule.

Trained on the `train` photos of 61 classes of the Grocery Store data; the learning rate of each method is chosen on a
tenth of these that is held out then; reported on the `val` photos of these classes. Few-shot episodes take the photos
of the 20 classes that no run has seen. Label errors are look-alikes by the frozen embedding, in the training photos.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from support.contrastive_tables import judge_claims, summarise, tables
from torch import Tensor, nn

from mca_perception.backbone import BEiT3, create_backbone, normalise
from mca_perception.classification.label_noise import inject_label_errors
from mca_perception.classification.losses import method_loss, stage_of
from mca_perception.classification.model import ClassificationHead
from mca_perception.classification.recipe import MethodRecipe, ViewAugmentation
from mca_perception.classification.validation import few_shot_metrics, representation_metrics
from mca_perception.classification.views import changed_view, plain_view
from mca_perception.cli import reports
from mca_perception.contrastive.embedding_metrics import class_cosines, class_margin, isotropy, uniformity
from mca_perception.datasets.grocery import is_grocery, read_grocery
from mca_perception.datasets.images import read_rgb
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.errors import McaError
from mca_perception.training.hardware import flushed_denormals

NAME = "contrastive"
NOVEL_CLASSES = 20
LEAST_NOVEL_PHOTOS = 20
GRID = 2
CHUNK = 64
WEIGHT_DECAY = 0.05
WARMUP = 0.05
# A fresh classifier on an encoder that is trained already needs larger steps; the same for every method.
CLASSIFIER_RATE = 5.0
# LaCViT's published 50 epochs of contrast and 10 of cross-entropy.
CONTRAST_SHARE = {"lacvit": 50 / 60, "supcon": 1.0, "scl_rhe": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "frozen": {"name": "cross_entropy"},
    "cross_entropy": {"name": "cross_entropy"},
    "supcon": {"name": "supcon"},
    "lacvit": {"name": "lacvit"},
    "clce": {"name": "clce"},
    "clce_plain": {"name": "clce", "hard_negatives": False},
    "scl_rhe": {"name": "scl_rhe"},
}
# One setting changed, at the learning rate of the method, in one cell: photos in a batch, share of label errors.
VARIANTS: dict[str, tuple[str, dict[str, Any], float]] = {
    "clce_half": ("clce", {"contrast_weight": 0.5}, 0.0),
    "clce_only": ("clce", {"contrast_weight": 1.0}, 0.0),
    "scl_rhe_trusting": ("scl_rhe", {"label_error": 0.0}, 0.05),
    "scl_rhe_doubting": ("scl_rhe", {"label_error": 0.1}, 0.05),
}
# Claim R13: so many errors, evenly spread over the other classes.
HEAVY_NOISE = 0.4
HEAVY_NOISE_METHODS = ("cross_entropy", "supcon", "scl_rhe")


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


class LastBlock(nn.Module):
    """What is trained of the backbone: its last block and final normalisation."""

    def __init__(self, backbone: BEiT3) -> None:
        super().__init__()
        self.layer = copy.deepcopy(backbone.encoder.layers[-1])
        norms = backbone.encoder.layer_norm
        self.norm = copy.deepcopy(norms["A"]) if norms is not None else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """``[N, L, D]`` to ``[N, L, D]``."""
        return self.norm(self.layer(tokens, (("A", tokens.shape[1]),)))


def open_backbone(bundle: ModelBundle, size: int) -> BEiT3:
    """The bundle's backbone with its weights."""
    backbone = create_backbone(bundle.manifest.backbone.name, img_size=bundle.manifest.backbone.img_size)
    assert isinstance(backbone, BEiT3)
    prefix = "backbone."
    stored = load_file(bundle.path / "weights.safetensors")
    backbone.load_state_dict(
        {name.removeprefix(prefix): t.float() for name, t in stored.items() if name.startswith(prefix)}
    )
    if size % backbone.patch_size or size // backbone.patch_size % GRID:
        raise McaError(f"--size {size} must be a multiple of {GRID * backbone.patch_size} pixels")
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


def load_photos(options: argparse.Namespace, bundle: ModelBundle) -> Photos:
    """Tokens of all photos, computed once per bundle, data and settings and kept in ``--work``."""
    items = [
        (next(iter(pick.views.values())), pick.product_id, split == "train")
        for split in ("train", "val")
        for pick in read_grocery(options.data, split).picks
    ]
    labels, known = split_classes([name for _, name, _ in items], [train for *_, train in items])
    train = np.array([is_train for *_, is_train in items])
    key = hashlib.sha256(
        f"{bundle.fingerprint} {input_hash(options)} {options.size} {options.versions}".encode()
    )
    path = reports.new_folder(options.work) / f"tokens-{key.hexdigest()[:16]}.npz"
    if not path.is_file():
        backbone = open_backbone(bundle, options.size)
        images = [read_rgb(photo) for photo, *_ in items]
        clean = tokens_of(backbone, [plain_view(image, options.size) for image in images])
        changed = np.zeros((options.versions, *clean.shape), np.float16)
        wanted = np.flatnonzero(train & (labels < known))
        for version in range(options.versions):
            views = [
                changed_view(
                    images[i], options.size, ViewAugmentation(), np.random.default_rng((version, int(i)))
                )
                for i in wanted
            ]
            changed[version, wanted] = tokens_of(backbone, views)
            print(f"version {version + 1} of {options.versions} is kept", flush=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, clean=clean, changed=changed)
        part.replace(path)
    with np.load(path) as stored:
        clean, changed = (_cells(stored[name], options.cells) for name in ("clean", "changed"))
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


class Settings(NamedTuple):
    """One training."""

    method: str
    batch: int
    noise: float
    seed: int
    lr: float
    epochs: int

    @property
    def key(self) -> str:
        """Name of the run among the results."""
        return f"{self.method}-batch{self.batch}-noise{self.noise:g}-seed{self.seed}"


def train(
    block: LastBlock,
    head: ClassificationHead,
    photos: Photos,
    chosen: NDArray[np.int64],
    labels: NDArray[np.int64],
    settings: Settings,
    method: MethodRecipe,
) -> dict[str, float]:
    """Train on the photos ``chosen`` with ``labels``; returns cost per step and peak memory."""  # fmt: skip
    steps = 0 if settings.method == "frozen" else settings.epochs * (len(chosen) // settings.batch)
    parameters = [*block.parameters(), *head.parameters()]
    classifier = list(head.classifier.parameters())
    others = [p for p in parameters if not any(p is own for own in classifier)]
    groups = [{"params": others, "scale": 1.0}, {"params": classifier, "scale": CLASSIFIER_RATE}]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    rng = np.random.default_rng((settings.seed, 1))
    per_epoch = max(1, len(chosen) // settings.batch)
    reset_peak_memory()
    before, times = peak_megabytes(), []
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(len(chosen))
        rows = order[step % per_epoch * settings.batch :][: settings.batch]
        views = np.stack([rng.permutation(len(photos.changed))[:2] for _ in rows], 1)
        tokens = torch.from_numpy(photos.changed[views.ravel(), np.tile(chosen[rows], 2)]).float()
        target = torch.from_numpy(np.tile(labels[rows], 2))
        started = time.process_time()
        for group in optimiser.param_groups:
            rate = schedule(step, steps, method.contrastive_batches)
            group["lr"] = settings.lr * group["scale"] * rate
        optimiser.zero_grad()
        representations = head(block(tokens))
        loss = method_loss(head, method, representations, target, stage_of(method, step))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        times.append(1000 * (time.process_time() - started))
    return {
        "steps": steps,
        "processor_ms_per_step": statistics.median(times) if times else 0.0,
        "peak_megabytes": peak_megabytes() - before,
    }


def schedule(step: int, steps: int, first_stage: int) -> float:
    """Warm-up and cosine of the learning rate, anew for each stage."""
    first = min(first_stage, steps)
    done, length = (step, first) if step < first else (step - first, steps - first)
    return min(1.0, (done + 1) / (WARMUP * length)) * 0.5 * (1 + math.cos(math.pi * done / length))


def run(photos: Photos, backbone: BEiT3, settings: Settings, *, choosing: bool = False) -> dict[str, Any]:
    """Train one method and judge it: on `val`, or on a held-out tenth of the training photos for a choice."""
    torch.manual_seed(settings.seed)
    chosen, judged = photos.train_indices, photos.val_indices
    if choosing:
        mixed = np.random.default_rng(0).permutation(chosen)
        judged, chosen = np.sort(mixed[: len(mixed) // 10]), np.sort(mixed[len(mixed) // 10 :])
    labels = photos.labels[chosen]
    if settings.noise:
        pooled = photos.clean[chosen][:, 1:].mean(1, dtype=np.float32)
        kind = "symmetric" if settings.noise == HEAVY_NOISE else "look-alike"
        labels = inject_label_errors(labels, settings.noise, kind, embeddings=pooled).labels
    steps = settings.epochs * (len(chosen) // settings.batch)
    base, changes, _ = VARIANTS.get(settings.method, (settings.method, {}, 0.0))
    fields = {**METHODS[base], **changes}
    if fields["name"] in CONTRAST_SHARE:
        fields["contrastive_batches"] = round(CONTRAST_SHARE[fields["name"]] * steps)
    method = MethodRecipe(**fields)
    block, head = LastBlock(backbone), ClassificationHead(backbone.embed_dim, method, photos.known)
    cost = train(block, head, photos, chosen, labels, settings, method)
    rows = {name: represent(block, head, photos.clean[part]) for name, part in
            (("train", chosen), ("judged", judged), ("novel", photos.novel_indices))}  # fmt: skip
    truth = photos.labels[judged]
    figures = representation_metrics(rows["train"], labels, rows["judged"], truth, photos.known)
    figures = {key: value for key, value in figures.items() if "way" not in key}
    untrained_classifier = settings.method == "frozen" or fields.get("contrast_weight") == 1.0
    prescribed_probe = method.freezes_encoder or untrained_classifier
    with torch.inference_mode():
        answers = head.classifier(torch.from_numpy(rows["judged"])).argmax(1).numpy()
    figures["top1"] = figures["probe_top1"] if prescribed_probe else float((answers == truth).mean())
    if not choosing:
        figures |= few_shot_metrics(rows["novel"], photos.labels[photos.novel_indices])
        figures |= embedding_figures(rows["judged"], truth)
    return {**figures, **cost, "lr": settings.lr, "judged": len(judged), "trained_on": len(chosen)}


@torch.inference_mode()
def represent(block: LastBlock, head: ClassificationHead, tokens: NDArray[np.float16]) -> NDArray[np.float32]:
    """``[N, L, D]`` to ``[N, D]``."""
    parts = [
        head(block(torch.from_numpy(part).float())) for part in np.array_split(tokens, 1 + len(tokens) // 256)
    ]
    return torch.cat(parts).numpy()


def embedding_figures(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Section 5 on held-out photos."""
    cosines, margin = class_cosines(rows, labels), class_margin(rows, labels)
    return {
        "gap": cosines.gap,
        "overlap": cosines.overlap,
        "auroc": cosines.auroc,
        "isotropy_raw": isotropy(rows, normalise=False),
        "isotropy_unit": isotropy(rows),
        "uniformity": uniformity(rows),
        "margin": margin.margin,
    }


def reset_peak_memory() -> None:
    """Let the kernel count the peak of resident memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_megabytes() -> float:
    """Highest resident memory since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def plan(options: argparse.Namespace, rates: dict[str, float]) -> list[Settings]:
    """All runs, cell by cell: what is finished can be compared over all seeds."""
    noisy = [(options.noise_batch, noise) for noise in options.noise if noise]
    plain = [(batch, 0.0) for batch in options.batches]
    cells = [*plain[:1], *noisy[:1], *plain[1:], *noisy[1:]]
    runs = [(method, batch, noise) for batch, noise in cells for method in METHODS]
    further = [(name, options.noise_batch, noise) for name, (_, _, noise) in VARIANTS.items()]
    further += [(method, options.noise_batch, HEAVY_NOISE) for method in HEAVY_NOISE_METHODS]
    first = len(METHODS) * 2
    return [
        Settings(method, batch, noise, seed, rates[VARIANTS.get(method, (method,))[0]], options.epochs)
        for method, batch, noise in [*runs[:first], *further, *runs[first:]]
        for seed in options.seeds
    ]


def input_hash(options: argparse.Namespace) -> str:
    """Of the lists that name photos and labels."""
    digest = hashlib.sha256()
    for name in ("classes.csv", "train.txt", "val.txt"):
        digest.update((options.data / name).read_bytes())
    return digest.hexdigest()


def choose_rates(
    options: argparse.Namespace, photos: Photos, backbone: BEiT3, document: dict[str, Any], path: Path
) -> dict[str, float]:
    """The learning rate of each method that is best on held-out training photos, at one batch size and seed."""
    tried: dict[str, dict[str, float]] = document["choice"]
    for method in METHODS:
        for lr in options.lr if method != "frozen" else options.lr[:1]:
            if f"{lr:g}" not in tried.setdefault(method, {}):
                settings = Settings(method, options.noise_batch, 0.0, 0, lr, options.epochs)
                tried[method][f"{lr:g}"] = run(photos, backbone, settings, choosing=True)["top1"]
                reports.write_json(path, document)
    return {method: float(max(scores, key=lambda lr: scores[lr])) for method, scores in tried.items()}


def numbers(kind: type) -> Any:
    """Reader of comma-separated numbers."""
    return lambda text: [kind(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path("models/nano"), help="bundle whose backbone is trained on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    parser.add_argument("--data", type=Path, help="folder of the Grocery Store data set")
    parser.add_argument("--batches", type=numbers(int), default=[64, 128, 32])
    parser.add_argument("--noise", type=numbers(float), default=[0.05, 0.2, 0.1])
    parser.add_argument("--noise-batch", type=int, default=64)
    parser.add_argument("--seeds", type=numbers(int), default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--lr", type=numbers(float), default=[1e-3, 3e-3], help="to choose from on held-out photos"
    )
    parser.add_argument("--size", type=int, default=96, help="pixels of a photo's side")
    parser.add_argument("--versions", type=int, default=3, help="augmented versions per training photo")
    parser.add_argument(
        "--report", action="store_true", help="print the tables of what is there, train nothing"
    )
    parser.add_argument(
        "--cells", type=int, choices=(1, GRID**2), default=1, help="averages that the block sees"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs") / NAME, help="folder for the kept tokens")
    return parser.parse_args()


def main() -> None:
    """Choose, train and judge; ``contrastive-<device>.json`` is written after each run, and gone on with."""
    options = parse()
    if options.data is None:
        print(
            f"{NAME} trains for half an hour and is left out: give --data to run it (see benchmarks/README.md)"
        )
        return
    if not is_grocery(options.data):
        raise McaError(
            f"--data {options.data} has no classes.csv; give the folder of the Grocery Store data set"
        )
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    facts = reports.environment(packages=("torch",))
    path = reports.new_folder(options.out) / f"{NAME}-{reports.device_slug(facts)}.json"
    bundle = ModelBundle.open(options.model)
    settings = {
        **{
            key: getattr(options, key) for key in ("noise_batch", "epochs", "lr", "size", "versions", "cells")
        },
        "model": reports.model_facts(bundle),
        "input_sha256": input_hash(options),
    }
    document: dict[str, Any] = {
        "benchmark": NAME,
        "settings": settings,
        "choice": {},
        "summary": {},
        "runs": {},
    }
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] != settings:
            raise McaError(f"{path} is of other settings; remove it or choose another --out")
        document = stored
    if options.report:
        print(tables(document["runs"]))
        return
    document |= facts
    with flushed_denormals():
        photos, backbone = load_photos(options, bundle), open_backbone(bundle, options.size)
        for entry in plan(options, choose_rates(options, photos, backbone, document, path)):
            if entry.key not in document["runs"]:
                document["runs"][entry.key] = run(photos, backbone, entry)
                document["summary"] = summarise(document["runs"])
                document["claims"] = judge_claims(document["runs"])
                reports.write_json(path, document)
                print(entry.key, f"top1 {document['runs'][entry.key]['top1']:.3f}", flush=True)
    print(tables(document["runs"]), path, sep="\n")


if __name__ == "__main__":
    main()
