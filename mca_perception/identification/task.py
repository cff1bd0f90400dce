"""Identification as a task of the training loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mca_perception.backbone import Backbone, normalise
from mca_perception.datasets.armbench import IdentificationIndex, Pick
from mca_perception.datasets.grocery import is_grocery, read_grocery
from mca_perception.datasets.loading import training_loader
from mca_perception.errors import DatasetError
from mca_perception.identification.data import ContainerSampler, Pair, PairDataset
from mca_perception.identification.evaluation import Query, ReferenceSet, rank_queries
from mca_perception.identification.index import load_identification
from mca_perception.identification.model import IdentificationModule
from mca_perception.identification.recipe import IdentificationRecipe
from mca_perception.identification.splitting import held_out_picks, trainable_picks
from mca_perception.identification.views import BEFORE_PICK, choose_views

CROPS_AT_ONCE = 128


class IdentificationTask:
    """Contrastive training on a folder of picks, or on the Grocery Store data; validation picks are held out.

    Raises:
        DatasetError: the data cannot be read, or leave less than one batch.
    """

    name = "identification"

    def __init__(self, recipe: IdentificationRecipe, embed_dim: int, seed: int) -> None:
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        self.references, train, held_out, skipped = _read(recipe, seed)
        self.validation = [pick for pick in held_out if BEFORE_PICK in pick.views]
        if len(train) < recipe.batch_size:
            raise DatasetError(
                f"{recipe.data} leaves {len(train)} training picks for a batch of {recipe.batch_size}; "
                "add picks or lower identification.batch_size"
            )
        self.skipped = {"train": skipped}
        self.dataset = PairDataset(self.references, train, recipe)
        self.head = IdentificationModule(embed_dim, recipe, len(self.dataset.product_index))

    def batches(self, seed: int) -> Iterable[Pair]:
        """One pass over the training picks, container by container."""
        sampler = ContainerSampler(self.dataset.picks, self.recipe.batch_size, seed)
        return training_loader(self.dataset, sampler, seed=seed, workers=self.recipe.workers)

    def losses(self, backbone: Backbone, batch: Pair, device: torch.device) -> dict[str, Tensor]:
        """The recipe's loss on single views, and on fused views where there is a fusion."""
        present, products = batch.present.to(device), torch.as_tensor(batch.product).to(device)
        rows = self._encode(backbone, batch.query[batch.present], device, references=False)
        views = rows.new_zeros(*present.shape, rows.shape[1]).masked_scatter(present.unsqueeze(-1), rows)
        references = self._encode(backbone, batch.reference.flatten(0, 1), device, references=True)
        fused_references = self.head.fuse_references(references.reshape(*batch.reference.shape[:2], -1))
        single = views[torch.arange(len(views), device=device), torch.as_tensor(batch.single).to(device)]
        queries: dict[str, Tensor] = {} if self.recipe.trainable == "fusion" else {self.recipe.loss: single}
        if self.head.fusion is not None:
            queries[f"{self.recipe.loss}_fused"] = self.head.fuse_views(views, present)
        with torch.autocast(device.type, enabled=False):
            return {name: self.head.loss(rows, fused_references, products) for name, rows in queries.items()}

    def _encode(self, backbone: Backbone, crops: Tensor, device: torch.device, *, references: bool) -> Tensor:
        """uint8 ``[N, 3, S, S]`` to ``[N, E]``.

        In chunks, the activations of one chunk at a time are kept: its embeddings are computed again when their
        gradient is known. That is gradient caching by the autograd engine; the gradients are those of one pass.
        """

        def encode(chunk: Tensor) -> Tensor:
            images = normalise(chunk, device, backbone.normalisation)
            return self.head(backbone(images)["encoder_out"], references=references)

        size = self.recipe.chunk_size
        if size is None or len(crops) <= size:
            return encode(crops)
        chunks = torch.split(crops, size)
        return torch.cat([checkpoint(encode, chunk, use_reentrant=False) for chunk in chunks])

    @torch.inference_mode()
    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Recall@1 of the held-out picks within their container, with one view and, where they are fused, several."""
        names = {name for pick in self.validation for name in pick.container if self.references.get(name)}
        photos = {name: self.references[name][: self.recipe.validation_references] for name in sorted(names)}
        crops = [self.dataset.reference_crop(path) for paths in photos.values() for path in paths]
        rows = torch.from_numpy(self._embed(backbone, crops, device, references=True))
        parts = torch.split(rows, [len(paths) for paths in photos.values()])
        if self.head.reference_fusion is not None:
            parts = tuple(self.head.fuse_references(part[None].to(device)).cpu() for part in parts)
        references = ReferenceSet.from_products(
            {name: part.numpy() for name, part in zip(photos, parts, strict=True)}
        )
        single = self._embed_views(backbone, 1, device)
        metrics = {"recall@1": self._recall(single[:, 0], references)}
        if self.head.fusion is not None:
            views = torch.from_numpy(self._embed_views(backbone, self.recipe.views, device))
            present = views.square().sum(dim=2) > 0
            fused = self.head.fuse_views(views.to(device), present.to(device)).cpu().numpy()
            metrics[f"recall@1_views_{self.recipe.views}"] = self._recall(fused, references)
        return metrics

    def _recall(self, embeddings: NDArray[np.float32], references: ReferenceSet) -> float:
        queries = [
            Query(pick.id, pick.product_id, pick.container, embedding[None])
            for pick, embedding in zip(self.validation, embeddings, strict=True)
        ]
        ranked = rank_queries(queries, references)
        return sum(result.rank == 1 for result in ranked) / max(1, len(ranked))

    def _embed_views(self, backbone: Backbone, views: int, device: torch.device) -> NDArray[np.float32]:
        """Embeddings ``[N, V, E]`` of the validation picks; zeros where a view is missing."""
        chosen = [choose_views(pick.views, views) for pick in self.validation]
        slots = [(i, slot) for i, names in enumerate(chosen) for slot in names]
        crops = [self.dataset.query_crop(self.validation[i], chosen[i][slot]) for i, slot in slots]
        embeddings = np.zeros((len(chosen), views, self.recipe.embedding_dim), np.float32)
        if slots:
            embeddings[tuple(np.array(slots).T)] = self._embed(backbone, crops, device, references=False)
        return embeddings

    def _embed(
        self,
        backbone: Backbone,
        crops: Sequence[NDArray[np.uint8]],
        device: torch.device,
        *,
        references: bool,
    ) -> NDArray[np.float32]:
        parts = [np.zeros((0, self.recipe.embedding_dim), np.float32)]
        for start in range(0, len(crops), CROPS_AT_ONCE):
            batch = torch.from_numpy(
                np.stack(crops[start : start + CROPS_AT_ONCE]).transpose(0, 3, 1, 2).copy()
            )
            images = normalise(batch, device, backbone.normalisation)
            embeddings = self.head(backbone(images)["encoder_out"], references=references)
            parts.append(embeddings.cpu().numpy())
        return np.concatenate(parts)


def _read(
    recipe: IdentificationRecipe, seed: int
) -> tuple[dict[str, list[Path]], list[Pick], list[Pick], Counter[str]]:
    """References by product, picks to train on, picks held out, and what was skipped."""
    grocery = is_grocery(recipe.data)
    index: IdentificationIndex = (
        read_grocery(recipe.data, recipe.train_split)
        if grocery
        else load_identification(recipe.data, split=recipe.train_split)
    )
    train, held_out = held_out_picks(trainable_picks(index), recipe.validation_fraction, seed)
    references = {name: list(paths) for name, paths in index.references.items()}
    if grocery:  # the photos to train on are each other's references too
        for pick in train:
            references[pick.product_id] += pick.views.values()
    return references, train, held_out, index.skipped
