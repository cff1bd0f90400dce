"""What the viewer has seen: one record per frame, and the summary of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mca_perception.ros.statistics import percentiles
from mca_perception.ros.truth import ProductScore, Truth

__all__ = ["FrameRecord", "ObjectRow", "SessionLog"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ObjectRow:
    """One line of the table. ``box`` is xyxy in pixels; ``product`` is empty when there is none."""

    id: int
    label: str
    score: float
    product: str
    product_score: float
    box: Box


@dataclass(frozen=True)
class FrameRecord:
    """One received result.

    Attributes:
        stamp_ns: stamp of the source image.
        arrival_s: monotonic seconds of the arrival here.
        latency_ms: from the image's stamp to the arrival here.
        timings_ms: the perception node's own figures.
    """

    stamp_ns: int
    arrival_s: float
    latency_ms: float
    container_id: str
    model: str
    image_size: tuple[int, int]
    objects: tuple[ObjectRow, ...]
    timings_ms: Mapping[str, float]

    @property
    def name(self) -> str:
        """File name stem for this frame."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.container_id).strip(".")
        return safe[:80] or f"frame_{self.stamp_ns}"


@dataclass
class SessionLog:
    """Collects results, and the other nodes' counts from ``/diagnostics``.

    Attributes:
        frames: received results, in order.
        overlays: stamps of received overlay pictures.
        source: the source's last facts.
        perception: the perception node's last facts.
    """

    truth: Truth | None = None
    frames: list[FrameRecord] = field(default_factory=list)
    overlays: set[int] = field(default_factory=set)
    source: dict[str, str] = field(default_factory=dict)
    perception: dict[str, str] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    score: ProductScore = field(default_factory=ProductScore)

    def add(self, frame: FrameRecord) -> None:
        """Take one result."""
        self.frames.append(frame)
        if self.truth is not None:
            found = [(row.box, row.product) for row in frame.objects]
            self.score.add(self.truth.objects(frame.container_id), found)

    @property
    def sent(self) -> int | None:
        """Images that the source sent in all; ``None`` until it has finished."""
        return int(self.source["frames_sent"]) if self.source.get("finished") == "true" else None

    def is_complete(self) -> bool:
        """Whether every image that was sent came back or was dropped for a known cause."""
        sent = self.sent
        return sent is not None and len(self.frames) + sum(self.drops.values()) >= sent

    def summary(self) -> dict[str, Any]:
        """Figures of the run, ready for JSON."""
        frames = self.frames
        sent = int(self.source.get("frames_sent", 0))
        dropped = sum(self.drops.values())
        span = frames[-1].arrival_s - frames[0].arrival_s if len(frames) > 1 else 0.0
        counts = [len(frame.objects) for frame in frames]
        products = Counter(row.product for frame in frames for row in frame.objects if row.product)
        steps = frames[0].timings_ms if frames else {}
        return {
            "model": frames[-1].model if frames else "",
            "provider": self.perception.get("provider", ""),
            "source": self.source.get("source", ""),
            "frames": {
                "sent": sent,
                "received": len(frames),
                "dropped": dropped,
                "dropped_by_cause": dict(self.drops),
                "unreadable_at_source": int(self.source.get("frames_skipped", 0)),
                "lost": max(0, sent - len(frames) - dropped),
                "overlays": len(self.overlays),
            },
            "fps": round((len(frames) - 1) / span, 3) if span > 0 else 0.0,
            "latency_ms": percentiles([frame.latency_ms for frame in frames]),
            "steps_ms": {step: percentiles([frame.timings_ms[step] for frame in frames]) for step in steps},
            "objects": {
                "total": sum(counts),
                "per_frame_mean": round(sum(counts) / len(counts), 3) if counts else 0.0,
                "per_frame_min": min(counts, default=0),
                "per_frame_max": max(counts, default=0),
                "with_product": sum(products.values()),
                "distinct_products": len(products),
            },
            "products_against_truth": self.score.summary() if self.truth is not None else None,
            "image_sizes": sorted({f"{w}x{h}" for h, w in (frame.image_size for frame in frames)}),
        }
