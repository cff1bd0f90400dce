"""Identification as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, normalise
from mca_perception.contrastive import InfoNCE
from mca_perception.datasets.workers import WORKER_CONTEXT, initialise_worker
from mca_perception.errors import DatasetError
from mca_perception.identification.data import ContainerSampler, Pair, PairDataset
from mca_perception.identification.evaluation import Query, ReferenceSet, rank_queries
from mca_perception.identification.index import load_identification
from mca_perception.identification.model import IdentificationConfig, IdentificationHead
from mca_perception.identification.recipe import IdentificationRecipe

# Quick look while training; the evaluation uses every reference.
VALIDATION_REFERENCES = 2


class IdentificationModule(nn.Module):
    """The head with its loss, whose temperature is learned."""

    def __init__(self, head: IdentificationHead) -> None:
        super().__init__()
        self.head = head
        self.loss = InfoNCE()

    def forward(self, features: Tensor) -> Tensor:
        """``[N, 1 + T, D]`` features to ``[N, E]`` embeddings."""
        return self.head(features)


class IdentificationTask:
    """Contrastive training on an ARMBench-format folder of picks; validation picks are held out by container."""

    name = "identification"

    def __init__(self, recipe: IdentificationRecipe, embed_dim: int, seed: int) -> None:
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        config = IdentificationConfig(recipe.embedding_dim, recipe.crop_size, recipe.margin)
        self.head = IdentificationModule(IdentificationHead(embed_dim, config))
        index = load_identification(recipe.data, split=recipe.train_split)
        picks = [pick for pick in index.picks if pick.views and index.references.get(pick.product_id)]
        containers = sorted({tuple(sorted(pick.container)) for pick in picks})
        order = np.random.default_rng(seed).permutation(len(containers))
        held_out = {containers[i] for i in order[: max(1, round(len(order) * recipe.validation_fraction))]}
        train = [pick for pick in picks if tuple(sorted(pick.container)) not in held_out]
        self.validation = [
            pick for pick in picks if tuple(sorted(pick.container)) in held_out and "PickRGB" in pick.views
        ]
        if len(train) < recipe.batch_size:
            raise DatasetError(
                f"{recipe.data} leaves {len(train)} training picks for a batch of {recipe.batch_size}; "
                "add picks or lower identification.batch_size"
            )
        self.index = index
        self.skipped = {"train": index.skipped}
        self.dataset = PairDataset(index, train, crop_size=recipe.crop_size, margin=recipe.margin)

    def batches(self, seed: int) -> Iterable[Pair]:
        """One pass over the training picks, container by container."""
        sampler = ContainerSampler(self.dataset.picks, self.recipe.batch_size, seed)
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.recipe.workers,
            worker_init_fn=initialise_worker,
            multiprocessing_context=WORKER_CONTEXT if self.recipe.workers else None,
            generator=generator,
        )

    def losses(self, backbone: Backbone, batch: Pair, device: torch.device) -> dict[str, Tensor]:
        """Symmetric InfoNCE of a batch of query / reference pairs."""
        crops = normalise(torch.cat([batch.query, batch.reference]), device, backbone.normalisation)
        queries, references = self.head(backbone(crops)["encoder_out"]).chunk(2)
        with torch.autocast(device.type, enabled=False):
            return {
                "info_nce": self.head.loss(queries, references, torch.as_tensor(batch.product).to(device))
            }

    @torch.inference_mode()
    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Recall@1 of the held-out picks within their container, one view, best reference per product."""
        products = sorted(
            {name for pick in self.validation for name in pick.container if self.index.references.get(name)}
        )
        photos = {name: self.index.references[name][:VALIDATION_REFERENCES] for name in products}
        crops = [self.dataset.reference_crop(path) for paths in photos.values() for path in paths]
        rows = iter(self._embed(backbone, crops, device))
        references = {name: np.stack([next(rows) for _ in paths]) for name, paths in photos.items()}
        crops = [self.dataset.query_crop(pick, "PickRGB") for pick in self.validation]
        queries = [
            Query(pick.id, pick.product_id, pick.container, embedding[None])
            for pick, embedding in zip(self.validation, self._embed(backbone, crops, device), strict=True)
        ]
        ranked = rank_queries(queries, ReferenceSet.from_products(references))
        return {"recall@1": sum(result.rank == 1 for result in ranked) / max(1, len(ranked))}

    def _embed(self, backbone: Backbone, crops: list[np.ndarray], device: torch.device) -> np.ndarray:
        parts = []
        for start in range(0, len(crops), 128):
            batch = torch.from_numpy(np.stack(crops[start : start + 128]).transpose(0, 3, 1, 2).copy())
            parts.append(
                self.head(backbone(normalise(batch, device, backbone.normalisation))["encoder_out"])
                .cpu()
                .numpy()
            )
        return np.concatenate(parts)
