"""Crisis posts and reports, from and to messages."""

from __future__ import annotations

from mca_perception_msgs.msg import CrisisPost, LabelScore
from mca_perception_msgs.msg import CrisisReport as ReportMessage
from std_msgs.msg import Header

from mca_perception.crisis.posts import LEVELS, CrisisReport, Post

__all__ = ["to_post", "to_refusal", "to_report"]

_MODALITIES = {"text": ReportMessage.MODALITY_TEXT, "image": ReportMessage.MODALITY_IMAGE}
_LEVELS = {level: getattr(ReportMessage, f"PRIORITY_{level.upper()}") for level in LEVELS}


def to_post(message: CrisisPost) -> Post:
    """The post in a message."""
    return Post(
        text=message.text,
        images=tuple(bytes(image.data) for image in message.images),
        post_id=message.post_id,
        event_id=message.event_id,
    )


def to_report(report: CrisisReport, header: Header) -> ReportMessage:
    """Message of a report, with the header of its post."""
    return ReportMessage(
        header=header,
        post_id=report.post_id,
        event_id=report.event_id,
        informative=LabelScore(label=report.informative.label, score=report.informative.score),
        humanitarian=report.humanitarian.label,
        humanitarian_scores=[
            LabelScore(label=name, score=score) for name, score in report.humanitarian_scores.items()
        ],
        priority_score=report.priority_score,
        priority_level=_LEVELS[report.priority_level],
        alert=report.alert,
        uncalibrated=report.uncalibrated,
        modalities_used=sum(_MODALITIES[name] for name in report.modalities_used),
        modal_agreement=float("nan") if report.modal_agreement is None else report.modal_agreement,
        cached=report.cached,
        warnings=list(report.warnings),
        model=report.model,
        label_version=report.label_version,
        latency_ms=report.latency_ms,
        model_ms=report.model_ms,
    )


def to_refusal(post: CrisisPost, reason: str, model: str, label_version: str) -> ReportMessage:
    """Message for a post that could not be categorised: no labels, no modalities, and the reason as a warning."""
    return ReportMessage(
        header=post.header,
        post_id=post.post_id,
        event_id=post.event_id,
        uncalibrated=True,
        modal_agreement=float("nan"),
        warnings=[reason],
        model=model,
        label_version=label_version,
    )
