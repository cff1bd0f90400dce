"""One training of the benchmark of training methods: the last block on kept tokens, and what comes of it."""

from __future__ import annotations

import copy
import math
import statistics
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from support.contrastive_photos import Photos
from torch import Tensor, nn

from mca_perception.backbone import BEiT3
from mca_perception.classification.label_noise import Kind, inject_label_errors
from mca_perception.classification.losses import method_loss, stage_of
from mca_perception.classification.model import ClassificationHead
from mca_perception.classification.recipe import MethodRecipe
from mca_perception.classification.validation import few_shot_metrics, representation_metrics
from mca_perception.contrastive.embedding_metrics import class_cosines, class_margin, isotropy, uniformity

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
    "ce_supcon": {"name": "ce_supcon"},
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
    """Train on the photos ``chosen`` with ``labels``; returns the number of steps and their processor time."""
    steps = 0 if settings.method == "frozen" else settings.epochs * (len(chosen) // settings.batch)
    parameters = [*block.parameters(), *head.parameters()]
    classifier = list(head.classifier.parameters())
    others = [p for p in parameters if not any(p is own for own in classifier)]
    groups = [{"params": others, "scale": 1.0}, {"params": classifier, "scale": CLASSIFIER_RATE}]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    rng = np.random.default_rng((settings.seed, 1))
    per_epoch = max(1, len(chosen) // settings.batch)
    times = []
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
    return {"steps": steps, "processor_ms_per_step": statistics.median(times) if times else 0.0}


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
        kind: Kind = "symmetric" if settings.noise == HEAVY_NOISE else "look-alike"
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
