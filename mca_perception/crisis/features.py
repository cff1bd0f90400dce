"""Text to hashed n-gram features: words and pairs of words, and the characters inside words.

No vocabulary is needed, so a model is its weights alone, and any script, emoji or spelling has features. Links are
left out and user names become ``@user``: both identify a post, not what it says. NumPy only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["MAX_CHARACTERS", "FeatureBatch", "NgramConfig", "NgramFeatures", "normalise_text"]

MAX_CHARACTERS = 10_000
"""Characters of a text that count; what is beyond is left out, and said so in the answer."""

_URL = re.compile(r"https?://\S*")
_USER = re.compile(r"@\w+")
_WORD = re.compile(r"[#@]?\w+|[^\w\s]")
_SPACE = re.compile(r"\s+")
_CACHED_WORDS = 1 << 16
_LONGEST_WORD = 64


class NgramConfig(BaseModel):
    """Which n-grams, and into how many buckets they are hashed.

    Attributes:
        words: longest run of words.
        characters: shortest and longest run of characters inside a word with a blank at either end; None for none.
        buckets: for each of the two kinds; a power of two.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: int = Field(default=2, ge=1, le=5)
    characters: tuple[int, int] | None = (2, 5)
    buckets: int = Field(default=1 << 17, ge=16, le=1 << 22)

    @model_validator(mode="after")
    def _consistent(self) -> NgramConfig:
        if self.buckets & (self.buckets - 1):
            raise ValueError("buckets must be a power of two")
        if self.characters is not None and not 1 <= self.characters[0] <= self.characters[1] <= 10:
            raise ValueError("characters must be two numbers from 1 to 10, the smaller first")
        return self

    @property
    def size(self) -> int:
        """Number of features: word buckets first, then those of characters."""
        return self.buckets * (1 if self.characters is None else 2)


class FeatureBatch(NamedTuple):
    """Features of several texts, padded at the end.

    Attributes:
        ids: ``[N, L]`` int64; padding is :attr:`NgramConfig.size`, one beyond the last feature.
        counts: ``[N, L]`` float32, how often each occurs; 0 at padding.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.float32]


class NgramFeatures:
    """Turns texts into features."""

    def __init__(self, config: NgramConfig) -> None:
        self.config = config
        self._mask = config.buckets - 1
        self._of_word = lru_cache(maxsize=_CACHED_WORDS)(self._character_features)

    def count(self, text: str) -> Counter[int]:
        """Features of one text with their counts; empty for a text without any word, sign or emoji."""
        words = _WORD.findall(normalise_text(text[:MAX_CHARACTERS]))
        counts: Counter[int] = Counter()
        for length in range(1, self.config.words + 1):
            counts.update(
                self._bucket(" ".join(words[start : start + length]))
                for start in range(len(words) - length + 1)
            )
        if self.config.characters is not None:
            for word in words:
                counts.update(self._of_word(word[:_LONGEST_WORD]))
        return counts

    def batch(self, texts: Sequence[str]) -> FeatureBatch:
        """Features of texts as the arrays that a graph takes; at least one column."""
        counts = [self.count(text) for text in texts]
        length = max([1, *map(len, counts)])
        ids = np.full((len(counts), length), self.config.size, np.int64)
        values = np.zeros((len(counts), length), np.float32)
        for row, features in enumerate(counts):
            ids[row, : len(features)] = list(features)
            values[row, : len(features)] = list(features.values())
        return FeatureBatch(ids, values)

    def _character_features(self, word: str) -> tuple[int, ...]:
        shortest, longest = self.config.characters or (1, 0)
        padded = f" {word} "
        return tuple(
            self.config.buckets + self._bucket(padded[start : start + length])
            for length in range(shortest, longest + 1)
            for start in range(max(1, len(padded) - length + 1))
        )

    def _bucket(self, ngram: str) -> int:
        # surrogatepass: text from JSON may hold half a surrogate pair.
        return crc32(ngram.encode("utf-8", "surrogatepass")) & self._mask


def normalise_text(text: str) -> str:
    """Lower case, without links, user names as ``@user``, white space as single blanks."""
    return _SPACE.sub(" ", _USER.sub("@user", _URL.sub(" ", text.lower()))).strip()
