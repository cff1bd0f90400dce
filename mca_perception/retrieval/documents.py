"""Documents as they come in, checked, and their text in the pieces that entities and summaries are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mca_perception.errors import RetrievalError

__all__ = ["MAX_CHARACTERS", "STOP_WORDS", "Document", "sentences", "words"]

MAX_CHARACTERS = 1_000_000
"""Longest document, all fields together."""
LEAD_SECTION = "introduction"
_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")
# A full stop after a single letter or a title is none that ends a sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?。])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|No)\.)[\"')\]]*\s+(?=\S)")
STOP_WORDS = frozenset(
    """a about above after again against all also although always am among an and another any are around as at be
    became because become been before being below between both but by came can could did do does doing down during each
    either else even ever every few first for from further gave get gives goes good had has have having he her here hers
    him his how however i if in into is it its itself just kind known last later like made main make makes many may me
    might more most much must my near neither new no nor not now of off often on once one only or other others our out
    over own part per popular quite rather really s same see seen several shall she should since so some still such t
    than that the their theirs them themselves then there these they this those though three through thus to together
    too two under until up upon us use used using usually various very was way we well went were what when where which
    while who whom whose why will with within without would yet you your""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Document:
    """A query: a text, or the fields of an encyclopaedia's section, any of which may be empty.

    Attributes:
        text: free text.
        page_title: title of the page.
        section_title: title of the section; ``Introduction`` for the lead.
        hierarchy: titles of the sections above it.
        section_description: text of the section.
        page_description: lead text of the page.
    """

    text: str = ""
    page_title: str = ""
    section_title: str = ""
    hierarchy: tuple[str, ...] = ()
    section_description: str = ""
    page_description: str = ""

    def check(self) -> None:
        """Refuse what cannot be searched with.

        Raises:
            RetrievalError: the document is empty, too long, or not valid Unicode.
        """
        size = sum(map(len, (*self.titles, *self.bodies)))
        if size > MAX_CHARACTERS:
            raise RetrievalError(
                f"the document has {size:,} characters, at most {MAX_CHARACTERS:,} are read: search with a part of it"
            )
        if not any(words(part) for part in (*self.titles, *self.bodies)):
            raise RetrievalError("the document is empty: give a text, or at least a title")
        try:
            "".join((*self.titles, *self.bodies)).encode()
        except UnicodeEncodeError as error:
            raise RetrievalError(
                f"the document is not valid Unicode ({error.reason}): decode it with errors='replace'"
            ) from error

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles that are not empty, the most particular last; a lead section's own says nothing."""
        section = "" if self.section_title.strip().casefold() == LEAD_SECTION else self.section_title
        unique = dict.fromkeys(title.strip() for title in (self.page_title, *self.hierarchy, section))
        return tuple(title for title in unique if title)

    @property
    def bodies(self) -> tuple[str, ...]:
        """Running texts that are not empty, the most particular first."""
        unique = dict.fromkeys(
            body.strip() for body in (self.text, self.section_description, self.page_description)
        )
        return tuple(body for body in unique if body)

    def plain(self) -> str:
        """The titles and the running text, for an encoder that reads the beginning of it."""
        return ". ".join((*self.titles, *self.bodies))


def words(text: str) -> list[str]:
    """Words of a text, with inner apostrophes and hyphens, without other punctuation."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Sentences of a text; line breaks between paragraphs end one too."""
    parts = (part.strip() for line in re.split(r"\n+", text) for part in _SENTENCE_END.split(line))
    return [part for part in parts if words(part)]
