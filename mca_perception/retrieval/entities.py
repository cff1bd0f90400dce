"""Entities of documents: titles and noun phrases without any weights, or spaCy with a local model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.documents import STOP_WORDS, Document, sentences, words

__all__ = ["MAX_ENTITIES", "EntityExtractor", "PhraseEntities", "SpacyEntities", "canonical"]

MAX_ENTITIES = 80
"""Entities of one document, the first in reading order; the longest example of the thesis has as many."""
MAX_ENTITY_CHARACTERS = 100
MAX_PHRASE_WORDS = 3
SENTENCES_READ = 400
_BREAKS = ',;:()[]{}"\u201c\u201d/|\u2014\u2013!?'


class EntityExtractor(Protocol):
    """Finds what a document is about.

    Attributes:
        name: in every answer.
        is_simple: a stand-in for a trained recogniser.
    """

    name: str
    is_simple: bool

    def extract(self, document: Document) -> list[str]:
        """Unique entities in :func:`canonical` form, in reading order, at most `MAX_ENTITIES`."""
        ...


def canonical(entity: str) -> str:
    """The form in which entities are compared: case folded, one space between words, no possessive."""
    plain = " ".join(entity.casefold().replace("\u2019", "'").split())
    return plain.removesuffix("'s").strip(" .,;:'\"")[:MAX_ENTITY_CHARACTERS].strip()


class PhraseEntities:
    """Titles, capitalised names, and phrases of up to three content words between stop words.

    Attributes:
        name: ``phrases``.
        is_simple: True.
    """

    name = "phrases"
    is_simple = True

    def extract(self, document: Document) -> list[str]:
        """Titles first, then names, then phrases; of a document without any of them its single content words."""
        read = [sentence for body in document.bodies for sentence in sentences(body)][:SENTENCES_READ]
        found = [*document.titles]
        found += [name for sentence in read for name in _names(sentence)]
        found += [phrase for sentence in read for phrase in _phrases(sentence)]
        return _unique(found)


class SpacyEntities:
    """Named entities and noun chunks by a spaCy pipeline from a local folder.

    Attributes:
        name: ``spacy:FOLDER``.
        is_simple: False.
    """

    is_simple = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Load a pipeline; nothing is downloaded.

        Raises:
            RetrievalError: spaCy is not installed, or the folder holds no pipeline that recognises entities.
        """
        path = Path(folder)
        try:
            import spacy
        except ImportError as error:
            raise RetrievalError(
                "entities by spaCy need spacy: pip install spacy, or leave the model out to use titles and phrases"
            ) from error
        if not (path / "config.cfg").is_file():
            raise RetrievalError(
                f"{path} is no spaCy pipeline: give a folder with config.cfg, such as an unpacked en_core_web_lg"
            )
        try:
            self._pipeline: Any = spacy.load(path)
        except (OSError, ValueError, ImportError) as error:
            raise RetrievalError(
                f"spaCy pipeline {path} cannot be loaded ({error}); check its version"
            ) from error
        if not self._pipeline.has_pipe("ner") and not self._pipeline.has_pipe("entity_ruler"):
            raise RetrievalError(f"spaCy pipeline {path} recognises no entities; choose one with ner")
        self.name = f"spacy:{path.name}"

    def extract(self, document: Document) -> list[str]:
        """Titles, then named entities, then noun chunks where the pipeline parses."""
        text = "\n".join(document.bodies)[: self._pipeline.max_length]
        parsed = self._pipeline(text)
        found = [*document.titles, *(entity.text for entity in parsed.ents)]
        if parsed.has_annotation("DEP"):
            found += [chunk.text for chunk in parsed.noun_chunks]
        return _unique(found)


def _unique(entities: Iterable[str]) -> list[str]:
    plain = dict.fromkeys(canonical(entity) for entity in entities)
    return [entity for entity in plain if words(entity) and entity not in STOP_WORDS][:MAX_ENTITIES]


def _names(sentence: str) -> Iterator[str]:
    """Runs of capitalised words; one at the start of a sentence counts only with a second one after it."""
    for start, run in _runs(sentence, lambda word: word[0].isupper() and word.casefold() not in STOP_WORDS):
        if start > 0 or len(run) > 1:
            yield " ".join(run)


def _phrases(sentence: str) -> Iterator[str]:
    """Runs of content words, and their single words: the end of a run is most often its head."""
    for _, run in _runs(sentence, lambda word: word.casefold() not in STOP_WORDS and not word.isdigit()):
        if len(run) <= MAX_PHRASE_WORDS:
            yield " ".join(run)
        else:
            yield " ".join(run[:2])
            yield " ".join(run[-2:])
        yield from (word for word in run if len(word) > 2)


def _runs(sentence: str, belongs: Any) -> Iterator[tuple[int, list[str]]]:
    """Neighbouring words that belong together, with the number of words before; punctuation parts them."""
    marked = "".join(" \0 " if character in _BREAKS else character for character in sentence)
    position = 0
    for part in marked.split("\0"):
        for chosen, group in groupby(words(part), belongs):
            run = list(group)
            if chosen:
                yield position, run
            position += len(run)
