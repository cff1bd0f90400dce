"""Defect probabilities as messages: what they say at the operating point in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from mca_perception_msgs.msg import DefectAssessment
from numpy.typing import NDArray

from mca_perception.defects.scores import Answer, answer
from mca_perception.pipeline.inspection import DefectInspector

__all__ = ["ALARMS", "DefectRule", "rate_problem", "rule_for", "to_assessment"]

ALARMS = (DefectAssessment.MULTI_PICK, DefectAssessment.PACKAGE_DEFECT)
"""Decisions that say that something is wrong."""

_NEVER = 1.0


@dataclass(frozen=True)
class DefectRule:
    """How a decision is taken.

    Attributes:
        threshold: an alarm is a probability of any defect above it.
        clear_below: below it the object is nominal; between the two another view is asked for. None: no such range.
    """

    threshold: float = _NEVER
    clear_below: float | None = 0.0


UNCALIBRATED = DefectRule()
"""Without calibration nothing is promised: no alarm, and nothing passes as nominal."""


def rule_for(inspector: DefectInspector, unit: Literal["image", "pick"], rate: float) -> DefectRule:
    """The rule for a false-positive rate; that for the strictest one where the bundle has none as strict.

    Args:
        inspector: the model.
        unit: what is judged.
        rate: false-positive rate; 0 is the strictest calibrated one.
    """
    points = inspector.settings.points(unit)
    if not points:
        return UNCALIBRATED
    fitting = [point for point in points if point.fpr <= rate + 1e-9]
    return DefectRule((fitting or points[:1])[-1].threshold, inspector.settings.clear_below.get(unit))


def rate_problem(inspector: DefectInspector | None, rate: float) -> str:
    """Why a false-positive rate cannot be asked for, or an empty string; rates between two take the stricter one."""
    if rate == 0:
        return ""
    rates = [point.fpr for point in inspector.settings.points("image")] if inspector else []
    if not rates:
        return "the model has no calibrated defect head: only 0 can be set; run mca calibrate thresholds"
    if not rates[0] - 1e-9 <= rate <= rates[-1] + 1e-9:
        return f"defect_fpr is {rate:g}; the model is calibrated for {rates[0]:g} to {rates[-1]:g} (0: strictest)"
    return ""


def to_assessment(probabilities: NDArray[np.floating], rule: DefectRule) -> DefectAssessment:
    """Message for the probabilities ``[3]`` of nominal, multi-pick and package defect."""
    found = answer(float(probabilities[1:].sum()), rule.threshold, rule.clear_below)
    decisions = {
        Answer.NOMINAL: DefectAssessment.NOMINAL,
        Answer.ANOTHER_VIEW: DefectAssessment.ABSTAIN,
        Answer.ALARM: ALARMS[int(probabilities[1:].argmax())],
    }
    return DefectAssessment(
        decision=decisions[found],
        probabilities=[float(value) for value in probabilities],
        threshold=rule.threshold,
    )
