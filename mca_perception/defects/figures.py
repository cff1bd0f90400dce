"""Figures of one unit (single images, or picks) of a defect evaluation, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench_defects import LABELS
from mca_perception.defects.metrics import argmax_figures, curves, recall_at_fpr
from mca_perception.defects.operating_point import clopper_pearson, expected_calibration_error
from mca_perception.defects.scores import SCORES, scores_of, softmax
from mca_perception.deploy.manifest import DefectOperatingPoint

__all__ = ["RATES", "UnitResults", "unit_figures"]

RATES = (0.01, 0.05)
BOOTSTRAP_SAMPLES = 1000
_BOOTSTRAP_AT_ONCE = 50


@dataclass(frozen=True)
class UnitResults:
    """Logits ``[N, 3]``, truth by class ``[N, 3]`` bool, and the pick ``[N]`` that each row is of.

    A pick may show both defects; the first column of the truth is true where it shows none.
    """

    logits: NDArray[np.float32]
    truth: NDArray[np.bool_]
    groups: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """One label per row, ``[N]``: multi-pick where both defects show."""
        return np.where(self.truth[:, 0], 0, np.where(self.truth[:, 1], 1, 2)).astype(np.int64)

    def only(self, rows: NDArray[np.bool_]) -> UnitResults:
        """Some rows; the others' picks are gone."""
        _, groups = np.unique(self.groups[rows], return_inverse=True)
        return UnitResults(self.logits[rows], self.truth[rows], groups.astype(np.int64))


def unit_figures(
    results: UnitResults,
    temperature: float,
    points: Mapping[str, Sequence[DefectOperatingPoint]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is reported of a unit.

    Negatives of every score are the nominal rows: an alarm on one of them stops a line for nothing. Beside it,
    ``one_vs_rest`` counts the other defect as negative too, as published figures of single classes do.

    Args:
        results: logits and truth.
        temperature: of the logits.
        points: operating points by score.
        seed: of the bootstrap.
    """
    scores = scores_of(results.logits, temperature)
    positives = _positives(results)
    nominal = results.truth[:, 0]
    labels = results.labels
    figures: dict[str, Any] = {
        "count": len(nominal),
        "nominal": int(nominal.sum()),
        "positives": {name: int(positives[name].sum()) for name in SCORES},
    }
    found = {name: _curve(scores[name], positives[name], nominal) for name in SCORES}
    for rate in RATES:
        recalls = {name: recall_at_fpr(found[name], rate) for name in SCORES}
        figures[f"recall@fpr{rate}"] = {name: recall for name, (recall, _) in recalls.items()}
        figures[f"recall@fpr{rate}_interval95"] = {
            name: None
            if limit is None
            else _interval(scores[name] >= limit, positives[name], results.groups, seed)
            for name, (_, limit) in recalls.items()
        }
        rest = {name: curves(scores[name], positives[name]) for name in SCORES}
        figures[f"recall@fpr{rate}_one_vs_rest"] = {
            name: recall_at_fpr(rest[name], rate)[0] for name in SCORES
        }
    present = [name for name in SCORES if found[name].positives and found[name].negatives]
    figures["roc_auc"] = {name: found[name].roc_auc for name in present}
    figures["average_precision"] = {name: found[name].average_precision for name in present}
    figures["operating_points"] = {
        name: [
            _at_point(point, scores[name], positives[name], nominal, results.groups, seed)
            for point in points.get(name, ())
        ]
        for name in SCORES
    }
    figures["argmax"] = argmax_figures(results.logits.argmax(axis=1), labels, LABELS)
    figures["calibration_error"] = expected_calibration_error(softmax(results.logits, temperature), labels)
    return figures


def _positives(results: UnitResults) -> dict[str, NDArray[np.bool_]]:
    by_class = {name: results.truth[:, number] for number, name in enumerate(LABELS) if number}
    return {**by_class, "combined": ~results.truth[:, 0]}


def _curve(scores: NDArray[np.float64], positive: NDArray[np.bool_], nominal: NDArray[np.bool_]) -> Any:
    counted = positive | nominal
    return curves(scores[counted], positive[counted])


def _at_point(
    point: DefectOperatingPoint,
    scores: NDArray[np.float64],
    positive: NDArray[np.bool_],
    nominal: NDArray[np.bool_],
    groups: NDArray[np.int64],
    seed: int,
) -> dict[str, Any]:
    alarm = scores > point.threshold
    return {
        "threshold": point.threshold,
        "promised_fpr": point.fpr,
        "confidence": point.confidence,
        "calibration_negatives": point.negatives,
        "measured_fpr": _share(alarm, nominal),
        "measured_fpr_interval95": _interval(alarm, nominal, groups, seed),
        "recall": _share(alarm, positive),
        "recall_interval95": _interval(alarm, positive, groups, seed),
    }


def _share(alarm: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> float | None:
    return float(alarm[chosen].mean()) if chosen.any() else None


def _interval(
    alarm: NDArray[np.bool_], chosen: NDArray[np.bool_], groups: NDArray[np.int64], seed: int
) -> list[float] | None:
    """95 % interval of the share of alarms among the chosen rows.

    Exact (Clopper-Pearson) where every row is a pick of its own; for images, which come in groups, the percentiles of a
    bootstrap over picks.
    """
    if not chosen.any():
        return None
    if len(np.unique(groups)) == len(groups):
        return list(clopper_pearson(int((alarm & chosen).sum()), int(chosen.sum())))
    number = int(groups.max()) + 1
    hits = np.bincount(groups, alarm & chosen, number)
    totals = np.bincount(groups, chosen, number)
    rng = np.random.default_rng(seed)
    shares: list[float] = []
    for _ in range(0, BOOTSTRAP_SAMPLES, _BOOTSTRAP_AT_ONCE):
        weights = rng.multinomial(number, np.full(number, 1 / number), _BOOTSTRAP_AT_ONCE)
        drawn = weights @ totals
        shares += (weights @ hits / np.maximum(drawn, 1))[drawn > 0].tolist()
    return [float(value) for value in np.percentile(shares, [2.5, 97.5])]
