"""A neural crisis model as a task of the training loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mca_perception.backbone import Backbone, BEiT3
from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.crisis.metrics import classification_metrics, confusion_matrix
from mca_perception.crisis.networks.data import Batch, Collate, PostDataset, usable_posts
from mca_perception.crisis.networks.encoders import TextInputs, create_image_encoder, create_text_encoder
from mca_perception.crisis.networks.model import CrisisModel
from mca_perception.crisis.recipe import CrisisRecipe, ImagePart, TextPart
from mca_perception.datasets.crisismmd import LABELS, CrisisSplit, LabelledPost, read_split
from mca_perception.datasets.loading import training_loader
from mca_perception.errors import RecipeError

__all__ = ["CrisisTask"]

Prepare = Callable[[Sequence[str]], TextInputs]


class CrisisTask:
    """Classification of CrisisMMD posts by text, image or both; cross-entropy, no class weights.

    Args:
        recipe: settings.
        backbone: the shared model; read with where an encoder is ``backbone``.
        seed: not needed, the split is the published one; here for the loop's sake.

    Raises:
        RecipeError: an encoder cannot be made, or does not fit the head.
        DatasetError: the data are not usable.
    """

    name = "crisis"

    def __init__(self, recipe: CrisisRecipe, backbone: Backbone, seed: int) -> None:
        self.recipe = recipe
        self.every, self.weight = recipe.every, recipe.weight
        self.labels = LABELS[recipe.task]
        self.head, self.prepare = build_model(recipe, backbone)
        self.image_size = None if recipe.image is None else recipe.image.size
        train, validation = (
            read_split(recipe.data, recipe.task, s) for s in ("train", recipe.validation_split)
        )
        self.skipped: dict[str, Counter[str]] = {}
        posts, self.skipped["train"] = usable_posts(train.root, train.posts, recipe.modalities, training=True)
        held_out, self.skipped[recipe.validation_split] = usable_posts(
            validation.root, validation.posts, recipe.modalities, training=False
        )
        if len(posts) < recipe.batch_size:
            raise RecipeError(
                f"{train.path} has {len(posts)} posts for a batch of {recipe.batch_size}; lower crisis.batch_size"
            )
        self.dataset = PostDataset(train.root, posts, image_size=self.image_size)
        self.validation = PostDataset(validation.root, held_out, image_size=self.image_size)

    def batches(self, seed: int) -> Iterable[Batch]:
        """One pass over the training posts in random order."""
        return training_loader(
            self.dataset,
            self.recipe.batch_size,
            seed=seed,
            workers=self.recipe.workers,
            collate=Collate(self.prepare, self.image_size),
        )

    def losses(self, backbone: Backbone, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """Cross-entropy of a batch."""
        logits = self.head(backbone, batch.inputs.to(device))
        return {"cross_entropy": nn.functional.cross_entropy(logits.float(), batch.labels.to(device))}

    def validate(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        """Weighted F1, macro F1 and accuracy on the validation split."""
        probabilities = self._predict(self.validation, backbone, device)
        labels = [post.label for post in self.validation.posts]
        matrix = confusion_matrix(labels, probabilities.argmax(1), len(self.labels))
        metrics = classification_metrics(matrix, self.labels)
        return {name: metrics[name] for name in ("weighted_f1", "macro_f1", "accuracy")}

    def predict(
        self, posts: Sequence[LabelledPost], split: CrisisSplit, backbone: Backbone, device: torch.device
    ) -> NDArray[np.float32]:
        """Probabilities ``[N, C]`` of posts of any split."""
        return self._predict(PostDataset(split.root, posts, image_size=self.image_size), backbone, device)

    @torch.inference_mode()
    def _predict(self, dataset: PostDataset, backbone: Backbone, device: torch.device) -> NDArray[np.float32]:
        loader = DataLoader(
            dataset, self.recipe.batch_size, collate_fn=Collate(self.prepare, self.image_size)
        )
        parts = [self.head(backbone, batch.inputs.to(device)).float().softmax(1).cpu() for batch in loader]
        return torch.cat(parts).numpy()


def build_model(recipe: CrisisRecipe, backbone: Backbone) -> tuple[CrisisModel, Prepare | None]:
    """The model of a recipe, and what turns texts into its inputs (None without text)."""
    widths: dict[str, int] = {}
    text_encoder = image_encoder = prepare = None
    text_length = 1
    if (text := recipe.text) is not None and text.encoder == "backbone":
        prepare, text_length = _backbone_prepare(text, backbone), text.length
        widths["text"] = getattr(backbone, "text_embed_dim", None) or backbone.embed_dim
    elif text is not None:
        text_encoder = create_text_encoder(
            text.encoder,
            length=text.length,
            width=text.width,
            features=text.features,
            remove_stop_words=text.remove_stop_words,
            vocabulary=text.vocabulary,
        )
        text_encoder.lr_scale = text.lr_scale
        prepare, text_length, widths["text"] = text_encoder.prepare, text_encoder.length, text_encoder.width
    if (image := recipe.image) is not None and image.encoder == "backbone":
        _check_image_size(image, backbone)
        widths["image"] = backbone.embed_dim
    elif image is not None:
        image_encoder = create_image_encoder(image.encoder, image.weights)
        image_encoder.lr_scale = image.lr_scale
        image_encoder.requires_grad_(not image.freeze)
        widths["image"] = image_encoder.width
    model = CrisisModel(
        len(LABELS[recipe.task]),
        widths,
        text_encoder=text_encoder,
        image_encoder=image_encoder,
        text_head="dense_3" if text is None else text.head,
        text_length=text_length,
        fusion=recipe.fusion,
        joint=recipe.joint,
        modality_dropout=recipe.modality_dropout,
    )
    return model, prepare


def _backbone_prepare(text: TextPart, backbone: Backbone) -> Prepare:
    assert text.tokenizer is not None  # the recipe sees to it
    tokenizer = BEiT3Tokenizer(text.tokenizer)
    if isinstance(backbone, BEiT3) and tokenizer.vocab_size > backbone.config.vocab_size:
        raise RecipeError(
            f"crisis.text.tokenizer needs {tokenizer.vocab_size} word embeddings, the backbone has "
            f"{backbone.config.vocab_size}; choose a beit3_* backbone or a smaller model"
        )
    pad_to = text.length if text.head in ("conv_stack", "kim_cnn") else None

    def prepare(texts: Sequence[str]) -> TextInputs:
        tokens = tokenizer.batch(texts, text.length, pad_to=pad_to)
        return TextInputs(torch.from_numpy(tokens.ids), torch.from_numpy(~tokens.padding_mask).float())

    return prepare


def _check_image_size(image: ImagePart, backbone: Backbone) -> None:
    if image.size % backbone.patch_size:
        raise RecipeError(
            f"crisis.image.size {image.size} is not a multiple of the patch size {backbone.patch_size}"
        )
