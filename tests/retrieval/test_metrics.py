from __future__ import annotations

import numpy as np
import pytest

from mca_perception.errors import RetrievalError
from mca_perception.retrieval.metrics import ranking_metrics


def toy(seed: int):
    """Random qrels with several relevant images and grades, and rankings of which some are missing."""
    rng = np.random.default_rng(seed)
    items = [f"i{i}" for i in range(40)]
    qrels = {
        f"q{q}": {
            items[i]: int(rng.integers(0, 3)) for i in rng.choice(40, int(rng.integers(1, 8)), replace=False)
        }
        for q in range(12)
    }
    qrels = {topic: found for topic, found in qrels.items() if any(found.values())}
    run = {topic: [items[i] for i in rng.permutation(40)[:25]] for topic in list(qrels)[:-2]}
    return qrels, run


@pytest.mark.parametrize("seed", range(4))
def test_u6_equals_ir_measures(seed: int) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    qrels, run = toy(seed)
    scored = {topic: {item: -rank for rank, item in enumerate(items)} for topic, items in run.items()}
    names = {
        "mrr@10": "RR@10",
        "recall@10": "R@10",
        "recall@1000": "R@1000",
        "ndcg@10": "nDCG@10",
        "hit@5": "Success@5",
    }
    measures = {name: ir_measures.parse_measure(theirs) for name, theirs in names.items()}
    per_topic = list(ir_measures.iter_calc(measures.values(), qrels, scored))
    ours = ranking_metrics(qrels, run, list(names))
    for name, measure in measures.items():
        # Topics without an answer count as 0, as with trec_eval -c.
        values = {m.query_id: m.value for m in per_topic if m.measure == measure}
        expected = sum(values.get(topic, 0.0) for topic in qrels) / len(qrels)
        assert ours[name] == pytest.approx(expected, abs=1e-9), name


def test_by_hand() -> None:
    qrels = {"a": {"x": 1, "y": 1}, "b": {"z": 1}, "c": {"z": 0}}
    run = {"a": ["w", "x", "v", "y"], "b": ["x"]}
    found = ranking_metrics(qrels, run, ["mrr@10", "recall@2", "recall@10", "hit@1"])
    assert found == {"mrr@10": 0.25, "recall@2": 0.25, "recall@10": 0.5, "hit@1": 0.0}


@pytest.mark.parametrize(
    ("qrels", "run", "metric", "message"),
    [
        ({"a": {"x": 0}}, {}, "mrr@10", "no topic has a relevant item"),
        ({"a": {"x": 1}}, {"a": ["x", "x"]}, "mrr@10", "repeats an item"),
        ({"a": {"x": 1}}, {}, "precision@3", "choose mrr@K"),
    ],
)
def test_bad_input(qrels, run, metric: str, message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        ranking_metrics(qrels, run, [metric])
