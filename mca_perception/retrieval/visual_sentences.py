"""Which sentences of a document say something that can be seen on the images of a store; needs no weights of its own.

A model that was trained to bring texts to their images has some near a sentence that can be seen, and none near one
about a price or a date: a sentence's score is its mean cosine with the nearest images of a sample of the store. (Verma
et al., "Learning the Visualness of Text Using Large Vision-Language Models", train for it with an image that means
nothing; this does not train.) docs/retrieval.md tells how far that gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.retrieval.documents import Document, sentences
from mca_perception.retrieval.encoder import TextEncoder
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.retrieval.summary import SENTENCES_READ

__all__ = ["VisualSentences"]

_SAMPLE = 2048
_BEST_SHARE = 0.02
_FIELDS = ("text", "section_description", "page_description")


class VisualSentences:
    """Leaves out of documents what no image of a store shows.

    Args:
        store: whose images decide; a sample of them is read at the first use.
        encoder: of the sentences.
    """

    def __init__(self, store: RetrievalStore, encoder: TextEncoder) -> None:
        self._store, self._encoder = store, encoder
        self._sample: tuple[int, NDArray[np.float32]] = (0, np.zeros((0, 0), np.float32))

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean cosine of each text with the 2 % of the sample that are nearest to it, float32 ``[T]``."""
        images = self._images()
        cosines = self._encoder.encode_texts(texts) @ images.T
        best = max(1, round(_BEST_SHARE * len(images)))
        return np.asarray(np.partition(cosines, -best, axis=1)[:, -best:].mean(axis=1), np.float32)

    def keep(self, document: Document, share: float) -> Document:
        """The document with this share of its sentences, those with the highest scores, in their order.

        Titles stay. Of the first 200 sentences at least one is kept, of those behind them none.
        """
        read = [sentence for field in _FIELDS for sentence in sentences(getattr(document, field))]
        found = list(dict.fromkeys(read))[:SENTENCES_READ]
        if len(found) < 2 or share >= 1:
            return document
        best = np.argsort(-self.scores(found), kind="stable")[: math.ceil(share * len(found))]
        kept = {found[number] for number in best}
        fields: dict[str, Any] = {
            field: " ".join(part for part in sentences(getattr(document, field)) if part in kept)
            for field in _FIELDS
        }
        return replace(document, **fields)

    def _images(self) -> NDArray[np.float32]:
        count = self._store.count
        if self._sample[0] != count:
            rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))
            self._sample = (count, self._store.vectors(rows))
        return self._sample[1]
