"""Ranking metrics by the definitions of trec_eval, with ``-c``: topics without an answer count as 0."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mca_perception.errors import RetrievalError

__all__ = ["ranking_metrics", "topic_metric"]

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance of items by topic and item; 0 or less is not relevant."""
_METRIC = re.compile(r"(mrr|recall|ndcg|hit)@([1-9][0-9]*)")


def ranking_metrics(
    qrels: Qrels, run: Mapping[str, Sequence[str]], metrics: Sequence[str]
) -> dict[str, float]:
    """Means over all topics of the qrels that have a relevant item.

    Args:
        qrels: what is relevant.
        run: items by topic, best first, without repetitions. Topics that the qrels lack are left out.
        metrics: of ``mrr@K``, ``recall@K``, ``ndcg@K`` and ``hit@K``.

    Raises:
        RetrievalError: a metric is not known, no topic has a relevant item, or a ranking repeats an item.
    """
    topics = [topic for topic, items in qrels.items() if any(grade > 0 for grade in items.values())]
    if not topics:
        raise RetrievalError("no topic has a relevant item; check the qrels")
    repeated = [topic for topic in topics if len(set(run.get(topic, ()))) != len(run.get(topic, ()))]
    if repeated:
        raise RetrievalError(f"the ranking of topic {repeated[0]!r} repeats an item; remove repetitions")
    return {
        metric: float(np.mean([topic_metric(qrels[topic], run.get(topic, ()), metric) for topic in topics]))
        for metric in metrics
    }


def topic_metric(relevance: Mapping[str, int], ranking: Sequence[str], metric: str) -> float:
    """One metric of one topic."""
    found = _METRIC.fullmatch(metric)
    if found is None:
        raise RetrievalError(f"metric {metric!r} is not known; choose mrr@K, recall@K, ndcg@K or hit@K")
    kind, cut = found[1], int(found[2])
    gains = [max(relevance.get(item, 0), 0) for item in ranking[:cut]]
    if kind == "mrr":
        return next((1 / rank for rank, gain in enumerate(gains, start=1) if gain), 0.0)
    hits = sum(gain > 0 for gain in gains)
    if kind == "hit":
        return float(hits > 0)
    if kind == "recall":
        return hits / sum(grade > 0 for grade in relevance.values())
    ideal = sorted((grade for grade in relevance.values() if grade > 0), reverse=True)[:cut]
    return _discounted(gains) / _discounted(ideal)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / float(np.log2(rank + 1)) for rank, gain in enumerate(gains, start=1))
