from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mca_perception_msgs")

from mca_perception_msgs.msg import DefectAssessment

from mca_perception.pipeline.inspection import DefectInspector
from mca_perception.ros.defect_messages import UNCALIBRATED, DefectRule, rate_problem, rule_for, to_assessment
from tests.support.bundles import OPERATING_POINTS, write_inspecting_bundle

RULE = DefectRule(threshold=0.6, clear_below=0.2)


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> DefectInspector:
    folder = tmp_path_factory.mktemp("bundle") / "inspecting"
    write_inspecting_bundle(folder)
    return DefectInspector.from_bundle(folder)


@pytest.mark.parametrize(
    ("probabilities", "rule", "decision"),
    [
        ((0.9, 0.06, 0.04), RULE, DefectAssessment.NOMINAL),
        ((0.5, 0.3, 0.2), RULE, DefectAssessment.ABSTAIN),
        ((0.3, 0.4, 0.3), RULE, DefectAssessment.MULTI_PICK),
        ((0.3, 0.3, 0.4), RULE, DefectAssessment.PACKAGE_DEFECT),
        ((0.5, 0.3, 0.2), DefectRule(0.6, None), DefectAssessment.NOMINAL),
        ((0.0, 0.5, 0.5), UNCALIBRATED, DefectAssessment.ABSTAIN),
        ((0.9, 0.05, 0.05), UNCALIBRATED, DefectAssessment.ABSTAIN),
    ],
)
def test_decisions(probabilities: tuple[float, ...], rule: DefectRule, decision: int) -> None:
    message = to_assessment(np.array(probabilities, np.float32), rule)
    assert message.decision == decision
    assert message.threshold == pytest.approx(rule.threshold)
    np.testing.assert_allclose(message.probabilities, probabilities, rtol=1e-6)


@pytest.mark.parametrize(
    ("rate", "point"), [(0, 0.01), (0.01, 0.01), (0.03, 0.01), (0.05, 0.05), (0.9, 0.05)]
)
def test_the_stricter_threshold_holds_between_two_rates(
    inspector: DefectInspector, rate: float, point: float
) -> None:
    assert rule_for(inspector, "image", rate) == DefectRule(OPERATING_POINTS[point], 0.3)


@pytest.mark.parametrize(
    ("rate", "problem"),
    [(0, ""), (0.01, ""), (0.02, ""), (0.05, ""), (0.004, "0.01 to 0.05"), (0.3, "0.01 to 0.05")],
)
def test_rates_outside_the_calibrated_ones_are_refused(
    inspector: DefectInspector, rate: float, problem: str
) -> None:
    found = rate_problem(inspector, rate)
    assert (problem in found) if problem else found == ""


def test_without_a_head_only_zero_can_be_set() -> None:
    assert rate_problem(None, 0.0) == ""
    assert "no calibrated defect head" in rate_problem(None, 0.01)
