"""Encoders of text and of images under one interface each, chosen by name.

* text: ``transformers:FOLDER`` (a BERT or the like on disk), ``vectors:FILE`` (word vectors as text, trainable),
  ``ngrams`` (hashed n-grams from scratch, as in fastText), ``backbone`` (the shared BEiT-3).
* images: ``timm:NAME`` and ``torchvision:NAME`` (ResNet-152, VGG16, ...), ``backbone``.

No weights are downloaded: folders and files are the user's.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mca_perception.backbone import Normalisation
from mca_perception.backbone.libraries import import_library
from mca_perception.crisis.features import NgramConfig, NgramFeatures, normalise_text
from mca_perception.errors import RecipeError

__all__ = [
    "ImageEncoder",
    "NgramEncoder",
    "TextEncoder",
    "TextInputs",
    "VectorEncoder",
    "create_image_encoder",
    "create_text_encoder",
]

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MAX_VOCABULARY = 2_000_000


class TextInputs(NamedTuple):
    """Texts as an encoder reads them: ``ids [N, L]`` int64, ``weights [N, L]`` float32, 0 at padding."""

    ids: Tensor
    weights: Tensor


class TextEncoder(nn.Module):
    """Turns texts into states.

    Attributes:
        width: ``D`` of a state.
        length: tokens ``L`` of every sequence of states.
        lr_scale: factor on the learning rate of its parameters, read by the training loop.
    """

    width: int
    length: int
    lr_scale: float

    @abstractmethod
    def prepare(self, texts: Sequence[str]) -> TextInputs:
        """Texts to inputs; runs in the data loader."""

    @abstractmethod
    def forward(self, inputs: TextInputs) -> Tensor:
        """States ``[N, L, D]``, the one that stands for the whole text first."""


class TransformersEncoder(TextEncoder):
    """A text encoder of transformers from a folder, with its own tokenizer, padded to ``length`` word pieces.

    Args:
        folder: what ``save_pretrained`` wrote; weights as safetensors.
        length: of a sequence; the thesis pads to 100.
        remove_stop_words: first drop English stop words, by spaCy's list, as the thesis does.

    Raises:
        RecipeError: there is no such folder or model in it, or spaCy is not installed and needed.
    """

    def __init__(self, folder: Path, length: int, *, remove_stop_words: bool = False) -> None:
        super().__init__()
        library = import_library("transformers")
        if not folder.is_dir():
            raise RecipeError(
                f"crisis text encoder: {folder} is not a folder; give one with a model of transformers"
            )
        try:
            self.tokenizer: Any = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model: Any = library.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"crisis text encoder: {folder} holds no usable model ({str(error)[:200]})"
            ) from error
        self.width, self.length = int(self.model.config.hidden_size), length
        self.stop_words = _stop_words() if remove_stop_words else frozenset()

    def prepare(self, texts: Sequence[str]) -> TextInputs:
        """Word pieces with their attention mask."""
        kept = [
            " ".join(word for word in text.split() if word.lower() not in self.stop_words) for text in texts
        ]
        batch = self.tokenizer(
            kept, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return TextInputs(batch["input_ids"], batch["attention_mask"].float())

    def forward(self, inputs: TextInputs) -> Tensor:
        """Last hidden states ``[N, L, D]``; the first is the raw CLS state."""
        return self.model(input_ids=inputs.ids, attention_mask=inputs.weights.long()).last_hidden_state


class VectorEncoder(TextEncoder):
    """Trainable word vectors; the mean of a text's vectors stands first, then the vectors of its words.

    Args:
        vectors: by word.
        length: words per text, 25 in the public baseline.
    """

    def __init__(self, vectors: dict[str, np.ndarray], length: int) -> None:
        super().__init__()
        self.rows = {word: row for row, word in enumerate(vectors, start=1)}
        table = torch.tensor(
            np.stack([np.zeros_like(next(iter(vectors.values()))), *vectors.values()])
        ).float()
        self.embedding = nn.Embedding(len(table), table.shape[1], padding_idx=0, _weight=table)
        self.width, self.length = table.shape[1], length + 1

    def prepare(self, texts: Sequence[str]) -> TextInputs:
        """Rows of the known words."""
        ids = torch.zeros(len(texts), self.length - 1, dtype=torch.int64)
        for line, text in zip(ids, texts, strict=True):
            rows = [self.rows[word] for word in normalise_text(text).split() if word in self.rows]
            rows = rows[: self.length - 1]
            line[: len(rows)] = torch.tensor(rows, dtype=torch.int64)
        return TextInputs(ids, (ids > 0).float())

    def forward(self, inputs: TextInputs) -> Tensor:
        """``[N, 1 + words, D]``."""
        vectors = self.embedding(inputs.ids)
        return torch.cat([_mean(vectors, inputs.weights).unsqueeze(1), vectors], 1)


class NgramEncoder(TextEncoder):
    """Hashed n-grams with an embedding each, averaged over the text, from scratch: what fastText does."""

    def __init__(self, config: NgramConfig, width: int) -> None:
        super().__init__()
        self.features = NgramFeatures(config)
        self.embedding = nn.Embedding(config.size + 1, width, padding_idx=config.size)
        nn.init.normal_(self.embedding.weight[: config.size], std=0.1)
        self.width, self.length = width, 1

    def prepare(self, texts: Sequence[str]) -> TextInputs:
        """Features with their counts."""
        batch = self.features.batch(texts)
        return TextInputs(torch.from_numpy(batch.ids), torch.from_numpy(batch.counts))

    def forward(self, inputs: TextInputs) -> Tensor:
        """``[N, 1, D]``."""
        return _mean(self.embedding(inputs.ids), inputs.weights).unsqueeze(1)


class ImageEncoder(nn.Module):
    """An image model without its classifier.

    Attributes:
        width: ``D`` of the pooled features.
        normalisation: of the images it expects.
        lr_scale: factor on the learning rate of its parameters, read by the training loop.
    """

    lr_scale: float

    def __init__(self, model: nn.Module, width: int, normalisation: Normalisation = IMAGENET) -> None:
        super().__init__()
        self.model, self.width, self.normalisation = model, width, normalisation

    def forward(self, images: Tensor) -> Tensor:
        """Normalised ``[N, 3, H, W]`` to ``[N, 1, D]``."""
        return self.model(images).unsqueeze(1)


def create_text_encoder(
    name: str, *, length: int, width: int, features: NgramConfig, remove_stop_words: bool, vocabulary: int
) -> TextEncoder:
    """Build a text encoder other than the backbone's.

    Args:
        name: ``transformers:FOLDER``, ``vectors:FILE`` or ``ngrams``.
        length: longest sequence of tokens.
        width: of the embeddings of ``ngrams``.
        features: of ``ngrams``.
        remove_stop_words: for ``transformers``.
        vocabulary: words that are read from a file of vectors, from its beginning.

    Raises:
        RecipeError: there is no such encoder, or its folder or file cannot be used.
    """
    kind, _, rest = name.partition(":")
    if kind == "transformers" and rest:
        return TransformersEncoder(Path(rest), length, remove_stop_words=remove_stop_words)
    if kind == "vectors" and rest:
        return VectorEncoder(read_vectors(Path(rest), vocabulary), length)
    if name == "ngrams":
        return NgramEncoder(features, width)
    raise RecipeError(
        f"crisis text encoder {name!r} is unknown: choose backbone, ngrams, transformers:FOLDER or vectors:FILE"
    )


def create_image_encoder(name: str, weights: Path | None) -> ImageEncoder:
    """Build an image encoder other than the backbone's.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``.
        weights: its state dict as safetensors, classifier included or not; None leaves it untrained.

    Raises:
        RecipeError: there is no such model, or the weights are not its own.
    """
    kind, _, rest = name.partition(":")
    if kind not in ("timm", "torchvision") or not rest:
        raise RecipeError(
            f"crisis image encoder {name!r} is unknown: choose backbone, timm:NAME or torchvision:NAME"
        )
    library = import_library(kind)
    try:
        if kind == "timm":
            model = library.create_model(rest, pretrained=False, num_classes=0)
        else:
            model = _without_classifier(library.models.get_model(rest, weights=None))
    except (RuntimeError, ValueError, KeyError) as error:
        raise RecipeError(f"{kind} has no usable image model {rest!r}: {str(error)[:200]}") from error
    if weights is not None:
        _load(model, weights)
    with torch.inference_mode():
        width = model.eval()(torch.zeros(1, 3, 224, 224)).shape[1]
    return ImageEncoder(model.train(), width)


def read_vectors(path: Path, limit: int) -> dict[str, np.ndarray]:
    """Word vectors of a text file, ``word number number ...`` per line, the first ``limit`` of them.

    A first line with two numbers, their count and width, is passed over.

    Raises:
        RecipeError: the file cannot be read, or a line has another width or no numbers.
    """
    vectors: dict[str, np.ndarray] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(itertools.islice(stream, min(limit, MAX_VOCABULARY) + 1), start=1):
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                vector = np.array(values, np.float32)
                if not vector.size or (vectors and vector.shape != next(iter(vectors.values())).shape):
                    raise RecipeError(
                        f"{path}, line {number}: {len(values)} numbers, unlike the lines before"
                    )
                if len(vectors) < limit:
                    vectors.setdefault(word, vector)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"word vectors {path} cannot be read ({str(error)[:200]}); check the file"
        ) from error
    if not vectors:
        raise RecipeError(f"{path} holds no word vectors; give a text file with one word per line")
    return vectors


def _mean(vectors: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the tokens; zero for a text without any."""
    total = weights.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm((weights / total).unsqueeze(1), vectors).squeeze(1)


def _stop_words() -> frozenset[str]:
    try:
        from spacy.lang.en.stop_words import STOP_WORDS
    except ModuleNotFoundError as error:
        raise RecipeError(
            "remove_stop_words needs spaCy's list: pip install spacy, or leave it off"
        ) from error
    return frozenset(STOP_WORDS)


def _without_classifier(model: Any) -> Any:
    """Replace the last layer of a torchvision model by nothing."""
    if isinstance(getattr(model, "fc", None), nn.Linear):
        model.fc = nn.Identity()
    elif isinstance(getattr(model, "classifier", None), nn.Sequential):
        model.classifier[-1] = nn.Identity()
    else:
        raise ValueError("its classifier is neither `fc` nor the end of `classifier`")
    return model


def _load(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        report = model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RecipeError(
            f"image weights {path} cannot be used ({str(error)[:200]}); give safetensors"
        ) from error
    if report.missing_keys:
        raise RecipeError(f"image weights {path} lack {report.missing_keys[0]}; they are of another model")
