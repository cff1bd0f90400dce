from __future__ import annotations

import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.documents import Document, sentences
from mca_perception.retrieval.entities import MAX_ENTITIES, PhraseEntities, SpacyEntities, canonical
from mca_perception.retrieval.summary import ExtractiveSummariser, TransformersSummariser

LIGHTHOUSE = Document(
    page_title="Point Reyes",
    section_title="Introduction",
    hierarchy=("Point Reyes", "History"),
    section_description=(
        "The Point Reyes Lighthouse was built in 1870 by the Coast Guard. It rains. The lighthouse guides ships "
        "around the rocky cape. Mr. Smith kept the lighthouse for years. Nobody knows."
    ),
)


def test_titles_leave_out_the_name_of_a_lead_section() -> None:
    assert LIGHTHOUSE.titles == ("Point Reyes", "History")


def test_sentences_end_where_they_end() -> None:
    assert sentences("One. Two J. Smith!  Three?\nFour") == ["One.", "Two J. Smith!", "Three?", "Four"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Coast ", "the coast"),
        ("Arla\u2019s", "arla"),
        ("STRASSE", "strasse"),
        ("x" * 300, "x" * 100),
    ],
)
def test_canonical_form(text: str, expected: str) -> None:
    assert canonical(text) == expected


def test_entities_are_titles_names_and_phrases() -> None:
    found = PhraseEntities().extract(LIGHTHOUSE)
    assert found[:2] == ["point reyes", "history"]
    assert {"point reyes lighthouse", "coast guard", "rocky cape", "ships"} <= set(found)
    assert not {"the", "it", "in", "1870"} & set(found)
    assert len(found) == len(set(found))
    assert found.index("coast guard") < found.index("rocky cape")


def test_entities_are_bounded() -> None:
    text = ". ".join(f"Word{i} Name{i} here" for i in range(500))
    assert len(PhraseEntities().extract(Document(text=text))) == MAX_ENTITIES


def test_a_summary_keeps_the_lead_and_what_the_text_is_about() -> None:
    summary = ExtractiveSummariser(max_words=30).summarise(LIGHTHOUSE)
    assert summary.startswith("Point Reyes. History. The Point Reyes Lighthouse was built in 1870")
    assert "lighthouse guides ships" in summary
    assert "Nobody knows" not in summary
    assert len(summary.split()) <= 34


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (Document(text="Short text."), "Short text."),
        (Document(page_title="A title"), "A title"),
        (Document(text="word " * 100), " ".join(["word"] * 5)),
    ],
)
def test_odd_documents_have_summaries(document: Document, expected: str) -> None:
    assert ExtractiveSummariser(max_words=5).summarise(document) == expected


def test_models_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(RetrievalError, match=r"config\.json"):
        TransformersSummariser(tmp_path)
    with pytest.raises(RetrievalError, match=r"spacy|config\.cfg"):
        SpacyEntities(tmp_path)
