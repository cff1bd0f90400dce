"""BEiT-3's tokenizer: a SentencePiece unigram model under the id scheme of XLM-R.

Ids as in the specification of the framework, section 3.2: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, an
ordinary piece one more than in the SentencePiece model, ``<mask>`` 64,001. Works on NumPy arrays and needs no torch;
``torch.from_numpy`` turns a batch into tensors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import TokenizerError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

__all__ = ["BEiT3Tokenizer", "TokenBatch"]

OFFICIAL_SHA256 = "6f5e2fefcf793761a76a6bfb8ad35489f9c203b25557673284b6d032f41043f4"
# The text position table has 1024 rows, of which the first two are not used.
SHORTEST, LONGEST = 2, 1022
DEFAULT_MAX_LENGTH = 64
MAX_CHARACTERS = 1_000_000
MAX_MODEL_BYTES = 64 * 2**20
PIECE_OFFSET = 1
# SentencePiece's own ids, and what the rows behind the last piece are for: one <mask>, the rest spare.
SPM_UNKNOWN, SPM_CONTROLS = 0, (1, 2)
SPARE_ROWS = 8


class TokenBatch(NamedTuple):
    """Token ids of several texts.

    Attributes:
        ids: ``[N, L]`` int64, padded at the end.
        padding_mask: ``[N, L]`` bool, True at padding.
        truncated: how many of the texts were longer than allowed and lost their end.
    """

    ids: NDArray[np.int64]
    padding_mask: NDArray[np.bool_]
    truncated: int


class BEiT3Tokenizer:
    """Turns text into token ids for BEiT-3's language expert, and back.

    A text never yields a special id: ``<mask>`` or ``</s>`` written in it are split into ordinary pieces like any
    other characters, so that what a user types cannot end, pad or mask a sequence. (transformers' tokenizer reads
    them as special tokens; all other ids are the same.) Unicode normalisation is the SentencePiece model's own.

    Attributes:
        bos_id: ``<s>``, the first id of every sequence, whose state stands for the text.
        pad_id: ``<pad>``.
        eos_id: ``</s>``, the last id of every sequence.
        unk_id: ``<unk>``, for what the model has no piece for.
        mask_id: ``<mask>``, for masked language modelling.
        vocab_size: rows of the embedding table, 64,010 for the official model.
        is_official: the file is the one released with BEiT-3. Pre-trained weights need it.

    Example:
        >>> tokenizer = BEiT3Tokenizer("beit3.spm")  # doctest: +SKIP
        >>> tokenizer.encode("A photo of a dog.")  # doctest: +SKIP
        [0, 94, 1127, 9, 10, 1152, 5, 2]
    """

    bos_id = 0
    pad_id = 1
    eos_id = 2
    unk_id = 3

    def __init__(self, model_file: str | os.PathLike[str]) -> None:
        """Load a SentencePiece model.

        Args:
            model_file: ``beit3.spm``, or another model with ``<unk>``, ``<s>``, ``</s>`` as its pieces 0, 1, 2.

        Raises:
            TokenizerError: the file is missing, too large, no SentencePiece model, or lacks those pieces; or the
                package sentencepiece is not installed.
        """
        self.model_file = Path(model_file)
        content = _read(self.model_file)
        self.is_official = hashlib.sha256(content).hexdigest() == OFFICIAL_SHA256
        self._processor = _load(content, self.model_file)
        self.mask_id = self._processor.get_piece_size() + PIECE_OFFSET
        self.vocab_size = self.mask_id + 1 + SPARE_ROWS

    def encode(self, text: str, max_length: int = DEFAULT_MAX_LENGTH) -> list[int]:
        """Encode one text.

        Args:
            text: at most a million characters.
            max_length: longest sequence, ``<s>`` and ``</s>`` included, 2 to 1022. What is beyond is cut off.

        Returns:
            Ids, from ``<s>`` to ``</s>``.

        Raises:
            TokenizerError: the text is no string, too long or not valid Unicode, or ``max_length`` is out of range.
        """
        _check_length("max_length", max_length)
        return self._frame(self._pieces(text), max_length)

    def batch(
        self, texts: Sequence[str], max_length: int = DEFAULT_MAX_LENGTH, *, pad_to: int | None = None
    ) -> TokenBatch:
        """Encode several texts to one array.

        Args:
            texts: each as in :meth:`encode`.
            max_length: as in :meth:`encode`.
            pad_to: length ``L`` of the array, at least ``max_length``; without it that of the longest sequence.

        Returns:
            Ids and padding mask ``[N, L]``, and the number of texts that were cut. Without texts or ``pad_to`` L is 0.

        Raises:
            TokenizerError: as for :meth:`encode`; ``texts`` is a single string; ``pad_to`` is out of range.
        """
        _check_length("max_length", max_length)
        if isinstance(texts, str):
            raise TokenizerError("texts must be a sequence of strings, not one string: put it into a list")
        if pad_to is not None:
            _check_length("pad_to", pad_to)
            if pad_to < max_length:
                raise TokenizerError(
                    f"pad_to {pad_to} is below max_length {max_length}: lower max_length too"
                )
        pieces = [self._pieces(text) for text in texts]
        sequences = [self._frame(piece_ids, max_length) for piece_ids in pieces]
        length = max(map(len, sequences), default=0) if pad_to is None else pad_to
        ids = np.full((len(sequences), length), self.pad_id, dtype=np.int64)
        padding_mask = np.ones(ids.shape, dtype=np.bool_)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            padding_mask[row, : len(sequence)] = False
        truncated = sum(len(piece_ids) + 2 > max_length for piece_ids in pieces)
        return TokenBatch(ids, padding_mask, truncated)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into text; special ids are left out, ``<unk>`` becomes " ⁇ ".

        Raises:
            TokenizerError: an id is not one of the vocabulary's.
        """
        special = (self.bos_id, self.pad_id, self.eos_id, self.mask_id)
        pieces = []
        for token in ids:
            token = int(token)
            if not 0 <= token <= self.mask_id:
                raise TokenizerError(f"token id {token} is outside 0 to {self.mask_id}")
            if token not in special:
                pieces.append(SPM_UNKNOWN if token == self.unk_id else token - PIECE_OFFSET)
        text: str = self._processor.decode(pieces) if pieces else ""
        return text

    def _pieces(self, text: str) -> list[int]:
        """Ids of the pieces of a text, without ``<s>`` and ``</s>``."""
        if not isinstance(text, str):
            raise TokenizerError(f"a text must be a string, not {type(text).__name__}")
        if len(text) > MAX_CHARACTERS:
            raise TokenizerError(
                f"a text has {len(text)} characters, at most {MAX_CHARACTERS} are allowed: cut it"
            )
        try:
            pieces = self._processor.encode(text.encode())
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"a text is not valid Unicode ({error}): decode it with errors='replace'"
            ) from error
        return [self.unk_id if piece == SPM_UNKNOWN else piece + PIECE_OFFSET for piece in pieces]

    def _frame(self, pieces: list[int], max_length: int) -> list[int]:
        return [self.bos_id, *pieces[: max_length - 2], self.eos_id]


def _check_length(name: str, value: int) -> None:
    if not isinstance(value, int) or not SHORTEST <= value <= LONGEST:
        raise TokenizerError(f"{name} is {value!r}, it must be a whole number from {SHORTEST} to {LONGEST}")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise TokenizerError(f"tokenizer model {path} does not exist: name BEiT-3's beit3.spm")
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise TokenizerError(f"{path} has {size} bytes, a tokenizer model has at most {MAX_MODEL_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"tokenizer model {path} cannot be read: {error}") from error


def _load(content: bytes, path: Path) -> SentencePieceProcessor:
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise TokenizerError(
            "the tokenizer needs sentencepiece: pip install -c constraints.txt sentencepiece"
        ) from error
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise TokenizerError(
            f"{path} is not a SentencePiece model: name BEiT-3's beit3.spm ({error})"
        ) from error
    if processor.get_piece_size() <= max(SPM_CONTROLS) or not (
        processor.is_unknown(SPM_UNKNOWN) and all(processor.is_control(piece) for piece in SPM_CONTROLS)
    ):
        raise TokenizerError(
            f"{path} does not have <unk>, <s>, </s> as its pieces 0, 1, 2: name BEiT-3's beit3.spm or train one so"
        )
    return processor
