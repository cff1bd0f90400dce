"""Training of the language side for retrieval, as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mca_perception.backbone import Backbone, normalise
from mca_perception.backbone.blocks import TEXT
from mca_perception.contrastive.paired import logit_factor
from mca_perception.datasets.images import read_rgb, resize_square
from mca_perception.datasets.loading import training_loader
from mca_perception.datasets.pairs import Item
from mca_perception.errors import RetrievalError
from mca_perception.pretraining.data import Batch
from mca_perception.pretraining.model import PretrainingHeads
from mca_perception.pretraining.task import PretrainingTask
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.losses import document_image_loss
from mca_perception.retrieval.recipe import RetrievalPart, RetrievalRecipe
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.retrieval.summary import ExtractiveSummariser

__all__ = ["RetrievalTask", "freeze_for"]

PROBES = 8
"""Images that are encoded again to see that cached vectors are the model's own."""
LARGEST_DEVIATION = 0.02
"""Largest ``1 - cosine`` of a cached vector to the model's own. Float16 and int8 stores round; weights do too."""


class VectorSample(NamedTuple):
    """One pair: text, cached image vector ``[D]``, and numbers that are equal for equal texts and images."""

    text: str
    vector: np.ndarray[Any, np.dtype[np.float32]]
    text_number: int
    image_number: int


class VectorBatch(NamedTuple):
    """N pairs: texts, cached vectors float32 ``[N, D]``, ``[N, N]`` bool where rows share a text or an image."""

    texts: list[str]
    vectors: Tensor
    same: Tensor


class RetrievalTask(PretrainingTask):
    """Contrast of documents and images, by default of the language side against a frozen image side.

    Args:
        recipe: settings.
        backbone: the model that will be trained; what the recipe does not train is frozen here.
        seed: of the held-out part.

    Raises:
        RecipeError: the backbone is no Multiway Transformer, or does not fit tokenizer or image size.
        DatasetError: the data are not usable.
        RetrievalError: the store of image vectors is not usable or lacks an image.
        TokenizerError: the tokenizer's model is not usable.
    """

    name = "retrieval"

    def __init__(self, recipe: RetrievalRecipe, backbone: Backbone, seed: int) -> None:
        super().__init__(recipe, backbone, seed)
        self.part: RetrievalPart = recipe.trainable
        if recipe.summarise:
            for dataset in (self.dataset, self.held_out):
                dataset.items = summarised(dataset.items)
        freeze_for(self.part, backbone, self.head)
        self.cached: CachedPairs | None = None
        self._checked = False
        if recipe.image_vectors is not None:
            self.cached = CachedPairs(RetrievalStore.open(recipe.image_vectors), self.dataset.items)
            self.skipped["train"].update(self.cached.skipped)

    def batches(self, seed: int) -> Iterable[Any]:
        """One pass over the training pairs in random order."""
        if self.cached is None:
            return super().batches(seed)
        return training_loader(self.cached, self.recipe.batch_size, seed=seed, collate=collate_vectors)

    def losses(self, backbone: Backbone, batch: Any, device: torch.device) -> dict[str, Tensor]:
        """The contrast of the batch."""
        if isinstance(batch, Batch):
            return super().losses(backbone, batch, device)
        assert self.tokenizer is not None
        if not self._checked:
            self._check_vectors(backbone, device)
        tokens = self.tokenizer.batch(batch.texts, self.recipe.text_length)
        states = backbone(
            text_ids=torch.from_numpy(tokens.ids).to(device),
            text_padding_mask=torch.from_numpy(tokens.padding_mask).to(device),
        )["encoder_out"]
        texts = self.head.embed_texts(states)
        with torch.autocast(device.type, enabled=False):
            scale = logit_factor(self.head.logit_scale)
            loss = document_image_loss(texts, batch.vectors.to(device), scale, batch.same.to(device))
        return {"itc": loss}

    @torch.no_grad()
    def _check_vectors(self, backbone: Backbone, device: torch.device) -> None:
        """Compare a few cached vectors with what the model makes of the images."""
        assert self.cached is not None
        for item, vector in self.cached.probes():
            square = resize_square(read_rgb(item.images[0], oriented=True), self.recipe.image_size)
            image = torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))[None]
            was_training = backbone.training
            backbone.eval()
            states = backbone(normalise(image, device, backbone.normalisation))["encoder_out"]
            backbone.train(was_training)
            cosine = float(self.head.embed_images(states)[0].cpu() @ torch.from_numpy(vector))
            if cosine < 1 - LARGEST_DEVIATION:
                raise RetrievalError(
                    f"store {self.cached.store.path} holds vectors of another image side: {item.images[0].name} has "
                    f"cosine {cosine:.3f} to the model's own; index with a bundle exported from init_from"
                )
        self._checked = True


class CachedPairs(Dataset[VectorSample]):
    """Pairs of a text and a cached image vector; items without a vector are left out and counted.

    Attributes:
        store: where the vectors are.
        items: pairs with a vector.
        skipped: the others, by reason.
    """

    def __init__(self, store: RetrievalStore, items: Sequence[Item]) -> None:
        self.store = store
        rows = store.rows_of_uris(str(item.images[0].resolve()) for item in items)
        self.items = [item for item in items if str(item.images[0].resolve()) in rows]
        self.rows = [rows[str(item.images[0].resolve())] for item in self.items]
        missing = len(items) - len(self.items)
        self.skipped = {"image without a cached vector": missing} if missing else {}
        if not self.items:
            raise RetrievalError(
                f"store {store.path} has none of the {len(items)} training images; index their folder first"
            )
        numbers: dict[str, int] = {}
        self.text_numbers = [numbers.setdefault(item.texts[0], len(numbers)) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> VectorSample:
        row = self.rows[position]
        vector = self.store.vectors([row])[0]
        return VectorSample(self.items[position].texts[0], vector, self.text_numbers[position], row)

    def probes(self) -> Iterator[tuple[Item, np.ndarray[Any, np.dtype[np.float32]]]]:
        """Some items, spread over all, with their vectors."""
        for position in np.linspace(0, len(self) - 1, min(PROBES, len(self))).astype(int).tolist():
            yield self.items[position], self[position].vector


def collate_vectors(samples: list[VectorSample]) -> VectorBatch:
    """Stack pairs and mark those that share a text or an image."""
    texts = torch.tensor([sample.text_number for sample in samples])
    images = torch.tensor([sample.image_number for sample in samples])
    same = (texts[:, None] == texts[None]) | (images[:, None] == images[None])
    vectors = torch.from_numpy(np.stack([sample.vector for sample in samples]))
    return VectorBatch([sample.text for sample in samples], vectors, same)


def summarised(items: Sequence[Item]) -> list[Item]:
    """Items with summaries in the place of their texts."""
    summariser = ExtractiveSummariser()
    known: dict[str, str] = {}

    def short(text: str) -> str:
        if text not in known:
            known[text] = summariser.summarise(Document(text=text))
        return known[text]

    return [replace(item, texts=tuple(short(text) for text in item.texts)) for item in items]


def freeze_for(part: RetrievalPart, backbone: Backbone, heads: PretrainingHeads) -> None:
    """Freeze what a part leaves as it is (specification of retrieval, section 1.1); heads of other objectives always.

    ``language`` trains the language branch, its positions and projection and the temperature. The word embeddings, the
    vision branch and the vision projection stay, and with them the vectors of all images. This needs attention that is
    decoupled by modality, as in every public BEiT-3.

    Raises:
        RetrievalError: attention is shared between images and texts, and the image side was to stay as it is.
    """
    projections = ("language_head.", "logit_scale", *(("vision_head.",) if part == "all" else ()))
    for name, parameter in heads.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(projections))
    if part == "all":
        return
    if getattr(getattr(backbone, "config", None), "attention", "decoupled") != "decoupled":
        raise RetrievalError(
            "this backbone shares attention between images and texts: training the language side would change the "
            "vectors of images; take a beit3_* backbone of another size, or set retrieval.trainable=all"
        )
    for name, parameter in backbone.named_parameters():
        trains = TEXT in name.split(".") or (part == "text" and name.startswith("text_embed."))
        parameter.requires_grad_(parameter.requires_grad and trains)
