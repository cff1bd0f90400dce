"""U3, U4, U5, U7 and U8 of the specification of retrieval, section 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.documents import MAX_CHARACTERS, Document
from mca_perception.retrieval.entity_index import EntityIndex
from mca_perception.retrieval.exact_search import score_rows
from mca_perception.retrieval.retriever import Answer, Retriever, SearchOptions
from mca_perception.retrieval.store import RetrievalStore
from tests.support.retrieval import ClusterEncoder, cluster_store, cluster_vectors, grow, unit

NAMES = [f"c{i}" for i in range(100)]
COUNT, K = 3000, 60


@pytest.fixture(scope="module")
def encoder() -> ClusterEncoder:
    return ClusterEncoder()


@pytest.fixture
def store(tmp_path: Path, encoder: ClusterEncoder) -> RetrievalStore:
    """A store of 3,000 images whose entities are 90 of the 100 clusters."""
    store = cluster_store(tmp_path / "s", COUNT)
    EntityIndex(store).add(NAMES[:90], encoder, images_per_entity=K)
    return store


def rows(answer: Answer) -> list[int]:
    return [hit.row for hit in answer.hits]


def brute_force(store: RetrievalStore, encoder: ClusterEncoder, text: str, among, k: int) -> list[int]:
    """Independent of the code under test: one product with the whole matrix."""
    vectors = cluster_vectors(store.count)[among].astype(np.float64)
    scores = np.round(vectors @ encoder.encode_texts([text])[0].astype(np.float64), 6)
    return [int(among[i]) for i in sorted(range(len(among)), key=lambda i: (-scores[i], among[i]))[:k]]


def test_u3_equals_brute_force_among_the_candidates(store, encoder) -> None:
    answer = Retriever(store, encoder).retrieve(Document(text="About C3 and C17."), SearchOptions(top_n=50))
    expected = set()
    for name in ("c3", "c17"):
        expected |= set(brute_force(store, encoder, name, np.arange(COUNT), K))
    assert answer.candidate_count == len(expected)
    among = np.array(sorted(expected))
    assert rows(answer) == brute_force(store, encoder, answer.summary, among, 50)
    assert (answer.full_scan, answer.entities_known) == (False, ["c3", "c17"])


def test_u3_equals_full_brute_force_when_k_is_all(tmp_path, encoder) -> None:
    with cluster_store(tmp_path / "all", 400) as store:
        EntityIndex(store).add(["c3", "c17"], encoder, images_per_entity=400)
        found = EntityIndex(store).lookup(["c3", "c17"]).rows
        assert found.tolist() == list(range(400))
        answer = Retriever(store, encoder).retrieve(Document(text="About c3 and c17."))
        assert rows(answer) == brute_force(store, encoder, answer.summary, np.arange(400), 100)


def test_u4_unknown_entities_are_ignored_and_without_any_all_images_are_scanned(store, encoder) -> None:
    retriever = Retriever(store, encoder)
    mixed = retriever.retrieve(Document(text="c5 with c95"))
    alone = retriever.retrieve(Document(text="c5 with c95"), SearchOptions(entities=("c5",)))
    assert mixed.entities_unknown == ["c95"]
    assert rows(mixed) == rows(alone)
    none = retriever.retrieve(Document(text="c95 and c96"))
    assert (none.full_scan, none.candidate_count, none.entities_known) == (True, COUNT, [])
    assert rows(none) == brute_force(store, encoder, none.summary, np.arange(COUNT), 100)


def test_u4_results_are_unique_ordered_bounded_and_repeatable(store, encoder) -> None:
    retriever = Retriever(store, encoder)
    query = Document(text=" and ".join(NAMES[:40]))
    answer = retriever.retrieve(query, SearchOptions(top_n=1000))
    scores = [hit.score for hit in answer.hits]
    order = [(-hit.score, hit.row) for hit in answer.hits]
    assert len(answer.hits) <= 1000
    assert len({hit.image_id for hit in answer.hits}) == len(answer.hits)
    assert order == sorted(order)
    assert scores[0] <= 1
    assert rows(retriever.retrieve(query, SearchOptions(top_n=1000))) == rows(answer)
    with pytest.raises(RetrievalError, match="1 to 1000"):
        SearchOptions(top_n=1001)


def test_u5_new_entities_change_only_the_queries_that_name_them(store, encoder) -> None:
    retriever = Retriever(store, encoder)
    queries = [Document(text=f"{a} and {b}") for a, b in zip(NAMES[::2], NAMES[1::2], strict=True)]
    before = [rows(retriever.retrieve(query)) for query in queries]
    assert EntityIndex(store).add(["c92", "C93"], encoder) == 2
    after = [rows(retriever.retrieve(query)) for query in queries]
    changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert changed == [46]


def test_entities_are_encoded_once_and_never_during_a_search(store, encoder) -> None:
    encoder.encoded.clear()
    assert EntityIndex(store).add(["C1", "c2 "], encoder) == 0
    answer = Retriever(store, encoder).retrieve(Document(text="c1"))
    assert encoder.encoded == [answer.summary]


def test_u7_other_models_are_refused(store, encoder) -> None:
    stranger = ClusterEncoder(image_fingerprint="another")
    with pytest.raises(RetrievalError, match="holds vectors of image model 0123456789abcdef"):
        Retriever(store, stranger)
    with pytest.raises(RetrievalError, match="belongs to image model another"):
        EntityIndex(store).add(["new"], stranger)
    with pytest.raises(RetrievalError, match="made by text model text0"):
        EntityIndex(store).add(["new"], ClusterEncoder(text_fingerprint="tuned"))
    with pytest.raises(RetrievalError, match="with 60 images each"):
        EntityIndex(store).add(["new"], encoder, images_per_entity=10)
    # The text side may be trained further: it only has to compare with the same image vectors.
    assert Retriever(store, ClusterEncoder(text_fingerprint="tuned")).retrieve(Document(text="c1")).hits


def test_u8_candidates_are_bounded_however_many_images_there_are(store, encoder) -> None:
    query = Document(text="c3, c17 and c40")
    retriever = Retriever(store, encoder)
    counts = []
    for _ in range(3):
        answer = retriever.retrieve(query)
        counts.append(answer.candidate_count)
        assert not answer.full_scan
        grow(store, 3000, seed=store.count)
    assert max(counts) <= 3 * K


def test_rows_that_are_added_reach_the_entities(store, encoder) -> None:
    """As if all entities had been added after them; kept on disk by update()."""
    index = EntityIndex(store)
    grow(store, 500, seed=5)
    late = [index.lookup([name]).rows.tolist() for name in NAMES[:90]]
    assert any(max(found) >= COUNT for found in late)
    assert index.update() == 90
    assert index.update() == 0
    assert [index.lookup([name]).rows.tolist() for name in NAMES[:90]] == late
    for name, found in zip(NAMES[:90], late, strict=True):
        (hits,) = score_rows(store, encoder.encode_texts([name]), K)
        assert sorted(hits.rows.tolist()) == found


def test_stage_one_alone_ranks_by_the_best_entity(store, encoder) -> None:
    ranking = EntityIndex(store).ranking(["c3", "c17"], 10)
    vectors = store.vectors(ranking.rows)
    best = (vectors @ encoder.encode_texts(["c3", "c17"]).T).max(axis=1)
    np.testing.assert_allclose(ranking.scores, best, atol=1e-5)
    assert (np.diff(ranking.scores) <= 0).all()


def test_near_duplicates_collapse(tmp_path, encoder) -> None:
    with cluster_store(tmp_path / "s", 40) as store:
        grow(store, 40)  # the same vectors again
        plain = Retriever(store, encoder).retrieve(Document(text="c1"), SearchOptions(top_n=20))
        bare = Retriever(store, encoder).retrieve(
            Document(text="c1"), SearchOptions(top_n=20, near_duplicate=0.999)
        )
        assert len({row % 40 for row in rows(plain)}) == 10
        assert len({row % 40 for row in rows(bare)}) == 20


def test_two_steps_give_a_quick_answer_first(store, encoder) -> None:
    text = "It rains. " * 30 + "Only c3 matters here. C3 again and c3."
    quick, better = Retriever(store, encoder).two_steps(Document(text=text), SearchOptions(top_n=5))
    assert quick.summary.startswith("It rains")
    assert "c3" in better.summary
    assert len(better.summary) < len(quick.summary)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document(), "is empty"),
        (Document(text=" \n\t .,; "), "is empty"),
        (Document(text="word " * (MAX_CHARACTERS // 5 + 1)), "at most 1,000,000"),
        (Document(text="broken \ud800 text"), "not valid Unicode"),
    ],
)
def test_documents_that_cannot_be_searched_with(store, encoder, document, message) -> None:
    with pytest.raises(RetrievalError, match=message):
        Retriever(store, encoder).retrieve(document)


def test_a_document_of_a_megabyte_is_answered(store, encoder) -> None:
    text = "The c3 is near the c17. " * 41_000
    answer = Retriever(store, encoder).retrieve(Document(text=text[:MAX_CHARACTERS]))
    assert answer.entities_known == ["c3", "c17"]
    assert len(answer.summary.split()) <= 40


def test_an_answer_says_how_it_was_found(store, encoder) -> None:
    answer = Retriever(store, encoder).retrieve(Document(page_title="C3", text="about c4"))
    assert set(answer.timing_ms) == {"entities", "summary", "encode", "candidates", "score", "total"}
    assert answer.timing_ms["total"] >= max(answer.timing_ms.values()) > 0
    assert answer.model == "clusters@text0"
    assert answer.index_version == store.version
    assert [warning.split(":")[0] for warning in answer.warnings] == ["entities", "summary"]


def test_time_that_is_up_ends_a_search(store, encoder) -> None:
    with pytest.raises(RetrievalError, match="no answer within 0 s, stopped before stage entities"):
        Retriever(store, encoder).retrieve(Document(text="c3"), SearchOptions(timeout_s=0.0))


def test_an_empty_store_says_so(tmp_path, encoder) -> None:
    with cluster_store(tmp_path / "s", 0) as store, pytest.raises(RetrievalError, match="holds no images"):
        Retriever(store, encoder).retrieve(Document(text="c3"))


def test_centres_are_apart(encoder) -> None:
    """What the tests above rest on: clusters can be told from each other."""
    similarity = unit(encoder.centres) @ unit(encoder.centres).T - np.eye(100)
    assert similarity.max() < 0.95
