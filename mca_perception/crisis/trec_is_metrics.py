"""Official metrics of TREC Incident Streams (specification of crisis categorisation, section 5.2).

Tweets without an answer count as: no information type, lowest priority, no alert. Tweets whose gold labels have no
priority count for the information types only. Where the specification leaves a choice:

* A run's priorities are scaled to 0 to 1 over the whole run (minimum to 0, maximum to 1); if all are equal, they stay.
* An information type without gold tweets is left out of the mean of the priority measures.
* Equal priorities rank in the order of tweet ids; the gain in NDCG is the score of the gold level.
* The macro F1 of priority levels is over the levels that the gold labels or the answers have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.metrics import classification_metrics, confusion_matrix
from mca_perception.datasets.trec_is import ACTIONABLE, INFORMATION_TYPES, PRIORITIES, LabelledTweet
from mca_perception.datasets.trec_is_runs import Run
from mca_perception.errors import DatasetError

__all__ = ["alert_worth", "priority_level", "trec_is_metrics"]

LEVELS = tuple(PRIORITIES)
ALERT_THRESHOLD = 0.7
LOWEST_PRIORITY = 0.25
ACTIONABLE_SHARE = 0.75
TRUE_ALERT_BASE = 0.3
RANKING_DEPTH = 100
Floats = NDArray[np.float64]


class Answered(NamedTuple):
    """A gold tweet with a run's answer.

    Attributes:
        gold: the labels.
        types: indices of the information types that the run chose.
        priority: the run's, scaled to 0 to 1.
    """

    gold: LabelledTweet
    types: frozenset[int]
    priority: float

    @property
    def urgent(self) -> bool:
        """Whether the gold priority is High or Critical."""
        return self.gold.priority in ("High", "Critical")


def priority_level(score: float) -> int:
    """Index into :data:`LEVELS`; quarters closed above: up to 0.25 Low, 0.5 Medium, 0.75 High, else Critical."""
    return int(np.searchsorted((0.25, 0.5, 0.75), score, side="left"))


def trec_is_metrics(gold: Sequence[LabelledTweet], run: Run) -> dict[str, float | int | None]:
    """All metrics of a run; keys ending in ``_a`` are over all types or tweets, in ``_h`` over the important ones.

    Returns:
        ``cf1_a``, ``cf1_h``, ``cacc``, ``perr_2019_a`` / ``_h`` (squared error, lower is better), ``perr_a`` / ``_h``
        (F1, higher is better), ``ndcg_100``, ``alert_worth_h`` / ``_a``, ``priority_pearson`` (None where a side is
        constant), and counts.

    Raises:
        DatasetError: the run answers for none of the gold tweets, or no gold tweet has a priority.
    """
    answered, missing = _join(gold, run)
    rated = [tweet for tweet in answered if tweet.gold.priority is not None]
    if not rated:
        raise DatasetError("no gold tweet has a priority; give a label file with priorities")
    every, important = range(len(INFORMATION_TYPES)), sorted(ACTIONABLE)
    f1, accuracy = _type_scores(answered)
    squared, level_f1 = (_mean_by_type(rated, measure) for measure in (_squared_error, _level_f1))
    worth = _worth_by_urgency(rated)
    return {
        "cf1_a": float(f1[list(every)].mean()),
        "cf1_h": float(f1[important].mean()),
        "cacc": float(accuracy.mean()),
        "perr_2019_a": squared(every),
        "perr_2019_h": squared(important),
        "perr_a": level_f1(every),
        "perr_h": level_f1(important),
        "ndcg_100": _ndcg(rated),
        "alert_worth_h": worth[True],
        "alert_worth_a": None if None in worth.values() else (worth[True] + worth[False]) / 2,  # type: ignore[operator]
        "priority_pearson": _pearson(rated),
        "n": len(answered),
        "without_answer": missing,
        "without_priority": len(answered) - len(rated),
        "topics": len({tweet.gold.topic for tweet in answered}),
    }


def alert_worth(ranked: Sequence[Answered]) -> Floats:
    """Worth of every tweet of one event, -1 to 1.

    Args:
        ranked: tweets of the event in rank order, each with a gold priority.
    """
    worth = np.empty(len(ranked))
    false_alerts = 0
    for i, tweet in enumerate(ranked):
        alerted = tweet.priority >= ALERT_THRESHOLD
        similarity = _type_similarity(tweet.gold.types, tweet.types)
        if tweet.urgent:
            worth[i] = TRUE_ALERT_BASE + (1 - TRUE_ALERT_BASE) * similarity if alerted else -1.0
            false_alerts = 0 if alerted else false_alerts
        elif alerted:
            worth[i] = max(-np.log10(false_alerts / 2 + 1), -1.0)
            false_alerts += 1
        else:
            worth[i] = similarity
    return worth


def _type_similarity(gold: frozenset[int], chosen: frozenset[int]) -> float:
    """Jaccard similarity of the important and of the other types, weighted."""
    share = ACTIONABLE_SHARE if gold & ACTIONABLE else 0.0
    important = _jaccard(gold & ACTIONABLE, chosen & ACTIONABLE)
    return share * important + (1 - share) * _jaccard(gold - ACTIONABLE, chosen - ACTIONABLE)


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0


def _join(gold: Sequence[LabelledTweet], run: Run) -> tuple[list[Answered], int]:
    answers = {(entry.topic, entry.tweet_id): entry for entry in run.entries}
    found = [answers.get((tweet.topic, tweet.tweet_id)) for tweet in gold]
    if not any(found):
        raise DatasetError(
            f"run {run.tag} answers for none of the {len(gold)} labelled tweets; check that topics and tweet ids match"
        )
    scaled = dict(zip(answers, _scaled([entry.priority for entry in answers.values()]), strict=True))
    joined = [
        Answered(
            tweet,
            frozenset() if entry is None else frozenset(i for i, on in enumerate(entry.labels) if on),
            0.0 if entry is None else float(scaled[tweet.topic, tweet.tweet_id]),
        )
        for tweet, entry in zip(gold, found, strict=True)
    ]
    return joined, sum(entry is None for entry in found)


def _scaled(values: Sequence[float]) -> Floats:
    numbers = np.asarray(values, np.float64)
    low, high = numbers.min(), numbers.max()
    return (numbers - low) / (high - low) if high > low else numbers


def _type_scores(answered: Sequence[Answered]) -> tuple[Floats, Floats]:
    """F1 of the positive class and accuracy ``[25]`` of each information type."""
    shape = (len(answered), len(INFORMATION_TYPES))
    truth, chosen = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, tweet in enumerate(answered):
        truth[row, list(tweet.gold.types)] = True
        chosen[row, list(tweet.types)] = True
    both = (truth & chosen).sum(0)
    return 2 * both / np.maximum(truth.sum(0) + chosen.sum(0), 1), (truth == chosen).mean(0)


def _mean_by_type(
    rated: Sequence[Answered], measure: Callable[[Sequence[Answered]], float]
) -> Callable[[Sequence[int]], float | None]:
    """The mean of a measure over given types, each on its gold tweets."""
    values = {
        index: measure(own)
        for index in range(len(INFORMATION_TYPES))
        if (own := [tweet for tweet in rated if index in tweet.gold.types])
    }

    def mean(types: Sequence[int]) -> float | None:
        known = [values[index] for index in types if index in values]
        return float(np.mean(known)) if known else None

    return mean


def _squared_error(rated: Sequence[Answered]) -> float:
    priorities = np.clip([tweet.priority for tweet in rated], LOWEST_PRIORITY, 1.0)
    return float(((priorities - _gold_scores(rated)) ** 2).mean())


def _level_f1(rated: Sequence[Answered]) -> float:
    truth = [LEVELS.index(str(tweet.gold.priority)) for tweet in rated]
    chosen = [priority_level(tweet.priority) for tweet in rated]
    matrix = confusion_matrix(truth, chosen, len(LEVELS))
    return float(classification_metrics(matrix, LEVELS)["macro_f1"])


def _gold_scores(rated: Sequence[Answered]) -> Floats:
    return np.array([PRIORITIES[str(tweet.gold.priority)] for tweet in rated])


def _ranked_by_topic(rated: Sequence[Answered]) -> list[list[Answered]]:
    topics: dict[str, list[Answered]] = defaultdict(list)
    for tweet in rated:
        topics[tweet.gold.topic].append(tweet)
    return [sorted(own, key=lambda t: (-t.priority, t.gold.tweet_id)) for own in topics.values()]


def _ndcg(rated: Sequence[Answered]) -> float:
    """NDCG at 100 of the ranking by priority, averaged over events."""
    values = []
    for ranked in _ranked_by_topic(rated):
        gains = _gold_scores(ranked)
        discounts = 1 / np.log2(np.arange(2, 2 + min(len(gains), RANKING_DEPTH)))
        best = np.sort(gains)[::-1]
        values.append((gains[:RANKING_DEPTH] @ discounts) / (best[:RANKING_DEPTH] @ discounts))
    return float(np.mean(values))


def _worth_by_urgency(rated: Sequence[Answered]) -> dict[bool, float | None]:
    """Mean worth over tweets of high or critical priority (True) and over the others; None without such tweets."""
    values: dict[bool, list[float]] = {True: [], False: []}
    for ranked in _ranked_by_topic(rated):
        for tweet, worth in zip(ranked, alert_worth(ranked), strict=True):
            values[tweet.urgent].append(float(worth))
    return {urgent: float(np.mean(own)) if own else None for urgent, own in values.items()}


def _pearson(rated: Sequence[Answered]) -> float | None:
    priorities, truth = np.array([tweet.priority for tweet in rated]), _gold_scores(rated)
    if priorities.std() == 0 or truth.std() == 0:
        return None
    return float(np.corrcoef(priorities, truth)[0, 1])
