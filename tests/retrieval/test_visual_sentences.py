"""Sentences that a store's images can show, told from those that they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.documents import Document
from mca_perception.retrieval.retriever import Retriever, SearchOptions
from mca_perception.retrieval.store import RetrievalStore
from mca_perception.retrieval.visual_sentences import VisualSentences
from tests.support.retrieval import ClusterEncoder, cluster_store, grow

PRICE, HISTORY, SHIPPING = "It costs ten crowns.", "The firm began in 1923.", "It ships within a week."


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RetrievalStore]:
    with cluster_store(tmp_path / "s", 3000) as store:
        yield store


@pytest.fixture
def visual(store: RetrievalStore) -> VisualSentences:
    return VisualSentences(store, ClusterEncoder())


def test_what_images_show_stands_out(visual: VisualSentences) -> None:
    scores = visual.scores([PRICE, "A C3.", HISTORY, "A C17 is seen.", SHIPPING])
    assert min(scores[[1, 3]]) > max(scores[[0, 2, 4]]) + 0.05


@pytest.mark.parametrize(
    ("text", "share", "kept"),
    [
        (f"{HISTORY} A C3 is seen. {PRICE} {SHIPPING}", 0.25, "A C3 is seen."),
        (f"{HISTORY} A C3. {PRICE} A C17.", 0.5, "A C3. A C17."),
        (f"{HISTORY} {PRICE}", 1.0, f"{HISTORY} {PRICE}"),
        (PRICE, 0.1, PRICE),
        (f"{PRICE} {PRICE}", 0.1, f"{PRICE} {PRICE}"),  # one sentence, said twice
    ],
)
def test_a_share_of_the_sentences_is_kept_in_order(
    visual: VisualSentences, text: str, share: float, kept: str
) -> None:
    assert visual.keep(Document(text=text), share) == Document(text=kept)


def test_all_fields_compete_and_titles_stay(visual: VisualSentences) -> None:
    document = Document(page_title="C9", section_description=f"{PRICE} A C3.", page_description=HISTORY)
    assert visual.keep(document, 0.3) == Document(page_title="C9", section_description="A C3.")


def test_a_search_reads_what_is_left(store: RetrievalStore) -> None:
    document = Document(text=f"{HISTORY} {PRICE} A C3 is seen. {SHIPPING}")
    retriever = Retriever(store, ClusterEncoder())
    for use_summary in (True, False):
        options = SearchOptions(visual_share=0.25, use_summary=use_summary, top_n=5)
        answer = retriever.retrieve(document, options)
        assert answer.summary == "A C3 is seen."
        alone = retriever.retrieve(Document(text="A C3 is seen."), options)
        assert [hit.row for hit in answer.hits] == [hit.row for hit in alone.hits]


def test_the_sample_follows_the_store(store: RetrievalStore, visual: VisualSentences) -> None:
    before = visual.scores(["A C3."])
    grow(store, 500, seed=1)
    assert visual.scores(["A C3."]) != before


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(RetrievalError, match="visual_share is"):
        SearchOptions(visual_share=share)
