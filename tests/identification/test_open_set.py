from __future__ import annotations

import numpy as np
import pytest

from mca_perception.errors import DatasetError
from mca_perception.identification.evaluation import Query, Ranked, ReferenceSet, rank_queries
from mca_perception.identification.open_set import (
    acceptance_threshold,
    binomial_upper_bound,
    open_set_figures,
    receiver_operating_curve,
    trials_needed,
    unknown_similarities,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (0, 299), (3, 400), (40, 5000), (9, 9), (0, 0)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_bound_is_that_of_clopper_and_pearson(successes, trials, confidence) -> None:
    exact = 1.0 if successes == trials else stats.beta.ppf(confidence, successes + 1, trials - successes)
    assert binomial_upper_bound(successes, trials, confidence) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("count", [299, 500, 4000])
def test_threshold_accepts_as_many_as_the_bound_allows(count) -> None:
    scores = np.random.default_rng(count).uniform(-1, 1, count)
    threshold = acceptance_threshold(scores, 0.01, 0.95)
    passing = int((scores > threshold).sum())
    assert binomial_upper_bound(passing, count, 0.95) <= 0.01 < binomial_upper_bound(passing + 1, count, 0.95)


def test_stated_rate_holds_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    rates = [
        1 - acceptance_threshold(rng.random(400), 0.02, 0.9) for _ in range(2000)
    ]  # uniform scores: the true rate of a threshold is what lies above it
    assert np.mean(np.array(rates) <= 0.02) >= 0.9 - 0.02
    assert np.mean(rates) > 0.008  # and it is no stricter than it has to be


def test_too_few_trials_say_how_many_are_needed() -> None:
    assert trials_needed(0.01, 0.95) == 299
    with pytest.raises(DatasetError, match=r"298 trials .* at least 299 picks"):
        acceptance_threshold(np.zeros(298), 0.01, 0.95)
    assert acceptance_threshold(np.arange(299.0), 0.01, 0.95) == 298


def test_ties_at_the_threshold_are_refused() -> None:
    scores = np.full(400, 0.5)
    assert acceptance_threshold(scores, 0.05, 0.95) == 0.5


def picks(count: int = 300) -> list[Ranked]:
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(8, 16))
    references = {f"P{i}": (d / np.linalg.norm(d))[None].astype(np.float32) for i, d in enumerate(directions)}
    queries = []
    for i in range(count):
        manifest = tuple(f"P{j}" for j in rng.choice(8, int(rng.integers(1, 6)), replace=False))
        row = references[manifest[0]] + rng.normal(scale=0.35, size=(1, 16))
        row = (row / np.linalg.norm(row)).astype(np.float32)
        queries.append(Query(str(i), manifest[0] if i % 10 else "unheard of", manifest, row))
    return rank_queries(queries, ReferenceSet.from_products(references))


def test_figures_equal_a_count_by_hand() -> None:
    ranked = picks()
    figures = open_set_figures(ranked, 0.5)
    known = [r for r in ranked if r.query.product_id in r.query.manifest]
    right = sum(r.rank == 1 and r.best[1] > 0.5 for r in known)
    assert figures["known"] == len(known) == 270
    assert figures["true_accept_rate"] == pytest.approx(right / len(known))
    shares = ("true_accept_rate", "accepted_as_another_rate", "refused_rate")
    assert sum(figures[name] for name in shares) == pytest.approx(1)
    trials = [r for r in ranked if len(set(r.query.manifest) - {r.query.product_id})]
    accepted = sum(r.others[0] > 0.5 for r in trials)
    assert (figures["unknown"], figures["false_accepts"]) == (len(trials), accepted)
    assert figures["false_accept_rate"] == accepted / len(trials) < figures["false_accept_rate_upper_bound"]
    unknown = unknown_similarities(ranked)
    best = np.array([r.best[1] for r in known])[:, None]
    assert figures["auroc"] == pytest.approx(((best > unknown) + (best == unknown) / 2).mean(), abs=1e-9)


def test_curve_passes_through_the_figures_of_its_thresholds() -> None:
    ranked = picks()
    false, true = receiver_operating_curve(ranked)
    unknown = np.sort(unknown_similarities(ranked))[::-1]
    for place in (0, 20, 150):
        figures = open_set_figures(ranked, float(unknown[place]))
        assert false[place] == pytest.approx(figures["false_accept_rate"])
        assert true[place] == pytest.approx(figures["true_accept_rate"])


def test_nothing_known_and_nothing_unknown() -> None:
    figures = open_set_figures([], 0.5)
    assert figures["true_accept_rate"] is figures["false_accept_rate"] is figures["auroc"] is None
    assert figures["false_accept_rate_upper_bound"] == 1
