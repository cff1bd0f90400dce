"""Pre-training as a task of the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, BEiT3, normalise
from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.datasets.loading import training_loader
from mca_perception.errors import RecipeError
from mca_perception.pretraining.data import Batch, ItemDataset, collate, split_items
from mca_perception.pretraining.evaluation import Tally, retrieval_metrics
from mca_perception.pretraining.losses import masked_prediction_loss, matching_labels, matching_loss
from mca_perception.pretraining.masking import MaskedTexts, mask_texts
from mca_perception.pretraining.model import PretrainingHeads, as_multiway
from mca_perception.pretraining.objectives import (
    MaskedImages,
    PairEmbeddings,
    Prediction,
    Texts,
    embed_pairs,
    image_text_contrast,
    match_pairs,
    predict_masked,
)
from mca_perception.pretraining.recipe import PretrainingRecipe
from mca_perception.pretraining.self_supervision import changed_images, changed_texts, self_contrast
from mca_perception.pretraining.visual_tokens import RandomProjectionQuantiser, VisualTokenizer


class PretrainingTask:
    """Contrastive, masked-data and matching objectives on image-text pairs.

    Args:
        recipe: settings.
        backbone: the model that will be trained.
        seed: of the held-out part and of the default visual tokenizer.
        visual_tokenizer: turns images into the codes that masked image modelling predicts; a random-projection
            quantiser by default.

    Raises:
        RecipeError: the backbone is no Multiway Transformer, or does not fit the tokenizer or the image size.
        DatasetError: the data are not usable.
        TokenizerError: the tokenizer's model is not usable.
    """

    name = "pretraining"

    def __init__(
        self,
        recipe: PretrainingRecipe,
        backbone: Backbone,
        seed: int,
        visual_tokenizer: VisualTokenizer | None = None,
    ) -> None:
        backbone = as_multiway(backbone)
        if recipe.image_size % backbone.patch_size:
            raise RecipeError(
                f"pretraining.image_size {recipe.image_size} is not a multiple of the patch size {backbone.patch_size}"
            )
        self.recipe = recipe
        self.every = recipe.every
        self.weight = recipe.weight
        self.modalities = recipe.objectives.modalities
        self.tokenizer = _open_tokenizer(recipe, backbone)
        self.visual_tokenizer = visual_tokenizer or RandomProjectionQuantiser(
            backbone.patch_size, recipe.visual_codes, seed
        )
        self.head = PretrainingHeads(
            backbone.embed_dim,
            modalities=backbone.modalities,
            vocab_size=backbone.config.vocab_size,
            codes=self.visual_tokenizer.codes,
        )
        train, held_out, self.skipped = split_items(recipe, seed)
        self.dataset, self.held_out = (
            ItemDataset(
                items,
                self.modalities,
                image_size=recipe.image_size,
                patch_size=backbone.patch_size,
                hidden_share=recipe.masking.patches,
                smallest_crop=crop,
            )
            for items, crop in ((train, recipe.smallest_crop), (held_out, None))
        )

    def batches(self, seed: int) -> Iterable[Batch]:
        """One pass over the training items in random order."""
        return training_loader(
            self.dataset, self.recipe.batch_size, seed=seed, workers=self.recipe.workers, collate=collate
        )

    def losses(self, backbone: Backbone, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Every objective's loss, times its factor in the recipe."""
        wanted = self.recipe.objectives
        inputs = self._prepare(batch, backbone, device)
        terms: dict[str, Tensor] = {}
        if wanted.itc:
            images, texts = inputs.pair
            pairs = embed_pairs(backbone, self.head, images, texts)
            terms["itc"] = wanted.itc * image_text_contrast(self.head, pairs, inputs.labels)
            if wanted.itm:
                logits = match_pairs(backbone, self.head, images, texts, pairs, inputs.labels)
                terms["itm"] = wanted.itm * matching_loss(logits)
        terms |= self._self_contrasts(backbone, inputs)
        for objective in wanted.masked:
            for name, prediction in self._predict(objective, backbone, inputs).items():
                terms[name] = getattr(wanted, objective) * masked_prediction_loss(*prediction)
        return terms

    @torch.inference_mode()
    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Accuracies at hidden positions, and retrieval among the held-out items; always on the same masks."""
        wanted = self.recipe.objectives
        tally = Tally()
        embeddings: list[PairEmbeddings] = []
        labels: list[Tensor] = []
        loader = DataLoader(self.held_out, batch_size=self.recipe.batch_size, collate_fn=collate)
        for number, batch in enumerate(loader):
            generator = torch.Generator(device).manual_seed(number)
            inputs = self._prepare(batch, backbone, device)
            if wanted.itc:
                images, texts = inputs.pair
                pairs = embed_pairs(backbone, self.head, images, texts)
                embeddings.append(pairs)
                labels.append(inputs.labels)
                if wanted.itm and len(images) > 1:
                    matches = matching_labels(len(images), device)
                    logits = match_pairs(
                        backbone, self.head, images, texts, pairs, inputs.labels, generator=generator
                    )
                    tally.add("itm", logits, matches)
            for objective in wanted.masked:
                for name, prediction in self._predict(objective, backbone, inputs, generator).items():
                    tally.add(name, *prediction)
        metrics = tally.metrics()
        if embeddings:
            metrics |= retrieval_metrics(
                torch.cat([pairs.images for pairs in embeddings]),
                torch.cat([pairs.texts for pairs in embeddings]),
                torch.cat(labels),
            )
        return metrics

    def _prepare(self, batch: Batch, backbone: Backbone, device: torch.device) -> _Inputs:
        images = None if batch.images is None else normalise(batch.images, device, backbone.normalisation)
        hidden = None if batch.hidden_patches is None else batch.hidden_patches.to(device)
        texts = None
        if batch.texts is not None and self.tokenizer is not None:
            tokens = self.tokenizer.batch(batch.texts, self.recipe.text_length)
            texts = Texts(
                torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.padding_mask).to(device)
            )
        return _Inputs(images, hidden, texts, batch.labels.to(device))

    def _self_contrasts(self, backbone: Backbone, inputs: _Inputs) -> dict[str, Tensor]:
        """Contrast of images and of texts with changed copies of themselves, where the recipe asks for it."""
        wanted, terms = self.recipe.objectives, {}
        if wanted.ssl_image and inputs.images is not None:
            both = torch.cat([inputs.images, changed_images(inputs.images)])
            rows, copies = self.head.embed_images(backbone(both)["encoder_out"]).chunk(2)
            terms["ssl_image"] = wanted.ssl_image * self_contrast(rows, copies)
        if wanted.ssl_text and inputs.texts is not None:
            rows, copies = (
                self.head.embed_texts(
                    backbone(text_ids=texts.ids, text_padding_mask=texts.padding_mask)["encoder_out"]
                )
                for texts in (inputs.texts, changed_texts(inputs.texts))
            )
            terms["ssl_text"] = wanted.ssl_text * self_contrast(rows, copies, inputs.labels)
        return terms

    def _predict(
        self, objective: str, backbone: Backbone, inputs: _Inputs, generator: torch.Generator | None = None
    ) -> dict[str, Prediction]:
        """Predictions of one masked-data objective, by the name of the loss term."""
        images: MaskedImages | None = None
        texts: MaskedTexts | None = None
        if objective != "mlm" and inputs.images is not None and inputs.hidden_patches is not None:
            codes = self.visual_tokenizer(inputs.images)
            images = MaskedImages(inputs.images, inputs.hidden_patches, codes)
        if objective != "mim" and inputs.texts is not None and self.tokenizer is not None:
            masking = self.recipe.masking
            texts = mask_texts(
                *inputs.texts,
                masking.text_in_pairs if objective == "mvlm" else masking.text,
                mask_id=self.tokenizer.mask_id,
                replacement=masking.replacement,
                generator=generator,
            )
        predictions = predict_masked(backbone, self.head, images=images, texts=texts)
        if objective == "mvlm":
            return {f"mvlm_{part}": prediction for part, prediction in predictions.items()}
        (prediction,) = predictions.values()
        return {objective: prediction}


class _Inputs(NamedTuple):
    """A batch as the model reads it, on its device."""

    images: Tensor | None
    hidden_patches: Tensor | None
    texts: Texts | None
    labels: Tensor

    @property
    def pair(self) -> tuple[Tensor, Texts]:
        """Images and texts of a batch that has both."""
        assert self.images is not None
        assert self.texts is not None
        return self.images, self.texts


def _open_tokenizer(recipe: PretrainingRecipe, backbone: BEiT3) -> BEiT3Tokenizer | None:
    if "text" not in recipe.objectives.modalities or recipe.tokenizer is None:
        return None
    tokenizer = BEiT3Tokenizer(recipe.tokenizer)
    if tokenizer.vocab_size > backbone.config.vocab_size:
        raise RecipeError(
            f"pretraining.tokenizer {recipe.tokenizer} needs {tokenizer.vocab_size} word embeddings, the backbone has "
            f"{backbone.config.vocab_size}; choose a beit3_* backbone or a smaller model"
        )
    return tokenizer
