"""Summaries of documents: an extractive one that needs no weights, or a model of transformers from a local folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.documents import STOP_WORDS, Document, sentences, words

__all__ = ["ExtractiveSummariser", "Summariser", "TransformersSummariser"]

SENTENCES_READ = 200
"""Sentences of a document, from its beginning, among which a summary is chosen."""


class Summariser(Protocol):
    """Makes one short text of a document.

    Attributes:
        name: in every answer.
        is_simple: a stand-in for a trained summariser.
    """

    name: str
    is_simple: bool

    def summarise(self, document: Document) -> str:
        """A text not longer than the text side of a model reads."""
        ...


class ExtractiveSummariser:
    """Titles, the first sentence, and the sentences with the document's most frequent content words.

    A sentence scores the mean frequency of its content words (those of titles count double), which is the classic
    frequency summariser; the first always stays, as leads say what a text is about. Sentences keep their order.

    Attributes:
        name: ``extractive``.
        is_simple: True.
    """

    name = "extractive"
    is_simple = True

    def __init__(self, max_words: int = 40) -> None:
        self.max_words = max_words

    def summarise(self, document: Document) -> str:
        """At most ``max_words`` words; a document of fewer comes back whole."""
        title = ". ".join(document.titles)
        chosen = self._sentences(document, self.max_words - len(words(title)))
        return ". ".join(part for part in (title, " ".join(chosen)) if part)

    def _sentences(self, document: Document, room: int) -> list[str]:
        read = [sentence for body in document.bodies for sentence in sentences(body)][:SENTENCES_READ]
        found = list(dict.fromkeys(read))
        if not found or room <= 0:
            return []
        content = [[word.casefold() for word in words(sentence)] for sentence in found]
        counts = Counter(word for sentence in content for word in sentence if word not in STOP_WORDS)
        for title in document.titles:
            for word in {word.casefold() for word in words(title)} & counts.keys():
                counts[word] *= 2
        scores = [sum(counts[word] for word in sentence) / (1 + len(sentence)) for sentence in content]
        order = sorted(range(len(found)), key=lambda i: (i != 0, -scores[i], i))
        kept: list[int] = []
        for number in order:
            if len(content[number]) <= room:
                kept.append(number)
                room -= len(content[number])
        if not kept:
            return [" ".join(found[0].split()[: self.max_words])]
        return [found[number] for number in sorted(kept)]


class TransformersSummariser:
    """A sequence-to-sequence model such as BART, in transformers' format, from a local folder; needs torch.

    Attributes:
        name: ``transformers:FOLDER``.
        is_simple: False.
    """

    is_simple = False

    def __init__(self, folder: str | os.PathLike[str], *, max_tokens: int = 64, beams: int = 4) -> None:
        """Load a model; nothing is downloaded, and only safetensors weights are read.

        Raises:
            RetrievalError: transformers or torch are not installed, or the folder holds no such model.
        """
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise RetrievalError(
                f"{path} holds no model for summaries: give a folder with config.json and safetensors weights, such "
                "as bart-large-cnn saved by save_pretrained"
            )
        try:
            from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._model: Any = AutoModelForSeq2SeqLM.from_pretrained(
                path, local_files_only=True, use_safetensors=True
            ).eval()
        except ImportError as error:
            raise RetrievalError(
                "a summariser of transformers needs transformers and torch: pip install -c constraints.txt "
                "-e '.[backbones,train]'"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise RetrievalError(f"{path} cannot be loaded as a summariser ({error}); check it") from error
        self.name = f"transformers:{path.name}"
        self._settings = {"max_new_tokens": max_tokens, "num_beams": beams, "do_sample": False}

    def summarise(self, document: Document) -> str:
        """What the model writes; the titles stay before it."""
        title = ". ".join(document.titles)
        body = "\n".join(document.bodies)
        if not body:
            return title
        inputs = self._tokenizer(body, return_tensors="pt", truncation=True, max_length=1024)
        output = self._model.generate(inputs["input_ids"], **self._settings)
        text = self._tokenizer.decode(output[0], skip_special_tokens=True).strip()
        return ". ".join(part for part in (title, text) if part)
