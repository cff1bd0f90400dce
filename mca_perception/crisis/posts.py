"""Posts in, reports out: the types that the classifier, the command line and the service share.

Specification of crisis categorisation, section 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LEVELS", "CrisisReport", "LabelScore", "Post", "priority_level"]

LEVELS = ("Low", "Medium", "High", "Critical")
LEVEL_BOUNDS = (0.25, 0.5, 0.75)
"""Upper bounds, included, of the first three levels (specification, section 1.3)."""


@dataclass(frozen=True)
class Post:
    """One post to categorise.

    Attributes:
        text: may be empty.
        images: encoded JPEG or PNG files, may be none.
        post_id: identity of the post, or empty.
        event_id: event that it belongs to, or empty.
    """

    text: str = ""
    images: tuple[bytes, ...] = ()
    post_id: str = ""
    event_id: str = ""


@dataclass(frozen=True)
class LabelScore:
    """A label and its probability."""

    label: str
    score: float


@dataclass(frozen=True)
class CrisisReport:
    """How a post was categorised.

    Attributes:
        post_id: of the post.
        event_id: of the post.
        informative: the label chosen, with its probability.
        humanitarian: likewise.
        humanitarian_scores: probability of every category, in the model's order.
        priority_score: urgency, 0 to 1.
        priority_level: one of :data:`LEVELS`.
        alert: whether the score reached the threshold.
        uncalibrated: true while the priority follows from a rule over the categories.
        modalities_used: out of ``text`` and ``image``, what counted.
        modal_agreement: cosine of the category probabilities of text alone and images alone; None unless both counted.
        warnings: what did not count, and why.
        model: ``name@fingerprint``.
        label_version: of the label file.
        model_ms: share of this post in the model's time.
        cached: whether the answer was known already.
        latency_ms: from arrival at the service to the report; 0 without a service.
    """

    post_id: str
    event_id: str
    informative: LabelScore
    humanitarian: LabelScore
    humanitarian_scores: Mapping[str, float]
    priority_score: float
    priority_level: str
    alert: bool
    uncalibrated: bool
    modalities_used: tuple[str, ...]
    modal_agreement: float | None
    warnings: tuple[str, ...]
    model: str
    label_version: str
    model_ms: float = field(compare=False)
    cached: bool = False
    latency_ms: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; numbers to four decimals."""
        return {
            "post_id": self.post_id,
            "event_id": self.event_id,
            "informative": _score(self.informative),
            "humanitarian": _score(self.humanitarian),
            "humanitarian_scores": {
                name: round(value, 4) for name, value in self.humanitarian_scores.items()
            },
            "priority_score": round(self.priority_score, 4),
            "priority_level": self.priority_level,
            "alert": self.alert,
            "uncalibrated": self.uncalibrated,
            "modalities_used": list(self.modalities_used),
            "modal_agreement": None if self.modal_agreement is None else round(self.modal_agreement, 4),
            "warnings": list(self.warnings),
            "model": self.model,
            "label_version": self.label_version,
            "model_ms": round(self.model_ms, 3),
            "cached": self.cached,
        }


def priority_level(score: float) -> str:
    """Level of a score: quarters closed above."""
    return LEVELS[sum(score > bound for bound in LEVEL_BOUNDS)]


def _score(value: LabelScore) -> dict[str, Any]:
    return {"label": value.label, "score": round(value.score, 4)}
