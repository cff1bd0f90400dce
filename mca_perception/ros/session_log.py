"""What the viewer has seen, as running figures: a camera may go on for weeks. And the summary of a run."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mca_perception.ros.statistics import percentiles
from mca_perception.ros.truth import ProductScore, Truth

__all__ = ["WINDOW", "FrameRecord", "ObjectRow", "SessionLog"]

WINDOW = 100_000
"""Frames that percentiles are taken over: the latest. They take 3 MB per figure."""

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


class SessionLog:
    """Collects results, and the other nodes' counts from ``/diagnostics``.

    Attributes:
        truth: annotated products to compare with; ``None`` without.
        received: results so far.
        overlays: overlay pictures so far.
        unwritten: those among them that could not be written.
        source: the source's last facts.
        perception: the perception node's last facts.
        drops: frames that the perception node dropped, by cause.
    """

    def __init__(self, truth: Truth | None = None, *, window: int = WINDOW) -> None:
        """Begin to count.

        Args:
            truth: annotated products to compare with.
            window: frames that percentiles are taken over.
        """
        self.truth = truth
        self.received = self.overlays = self.unwritten = 0
        self.source: dict[str, str] = {}
        self.perception: dict[str, str] = {}
        self.drops: dict[str, int] = {}
        self._score = ProductScore()
        self._model = ""
        self._first_s = self._last_s = 0.0
        self._objects, self._fewest, self._most = 0, 0, 0
        self._products: Counter[str] = Counter()
        self._sizes: set[tuple[int, int]] = set()
        self._latencies: deque[float] = deque(maxlen=window)
        self._steps: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=window))

    def add(self, frame: FrameRecord) -> None:
        """Take one result."""
        count = len(frame.objects)
        if not self.received:
            self._first_s, self._fewest = frame.arrival_s, count
        self.received += 1
        self._last_s, self._model = frame.arrival_s, frame.model
        self._objects += count
        self._fewest, self._most = min(self._fewest, count), max(self._most, count)
        self._products.update(row.product for row in frame.objects if row.product)
        self._sizes.add(frame.image_size)
        self._latencies.append(frame.latency_ms)
        for step, milliseconds in frame.timings_ms.items():
            self._steps[step].append(milliseconds)
        if self.truth is not None:
            found = [(row.box, row.product) for row in frame.objects]
            self._score.add(self.truth.objects(frame.container_id), found)

    @property
    def sent(self) -> int | None:
        """Images that the source sent in all; ``None`` until it has finished."""
        return int(self.source["frames_sent"]) if self.source.get("finished") == "true" else None

    def is_complete(self) -> bool:
        """Whether every image that was sent came back or was dropped for a known cause."""
        sent = self.sent
        return sent is not None and self.received + sum(self.drops.values()) >= sent

    def summary(self) -> dict[str, Any]:
        """Figures of the run, ready for JSON."""
        received, sent = self.received, int(self.source.get("frames_sent", 0))
        dropped = sum(self.drops.values())
        span = self._last_s - self._first_s
        return {
            "model": self._model,
            "provider": self.perception.get("provider", ""),
            "source": self.source.get("source", ""),
            "frames": {
                "sent": sent,
                "received": received,
                "dropped": dropped,
                "dropped_by_cause": dict(self.drops),
                "unreadable_at_source": int(self.source.get("frames_skipped", 0)),
                "lost": max(0, sent - received - dropped),
                "overlays": self.overlays,
                "overlays_unwritten": self.unwritten,
            },
            "fps": round((received - 1) / span, 3) if span > 0 else 0.0,
            "latency_ms": percentiles(list(self._latencies)),
            "steps_ms": {step: percentiles(list(values)) for step, values in self._steps.items()},
            "objects": {
                "total": self._objects,
                "per_frame_mean": round(self._objects / received, 3) if received else 0.0,
                "per_frame_min": self._fewest,
                "per_frame_max": self._most,
                "with_product": sum(self._products.values()),
                "distinct_products": len(self._products),
            },
            "products_against_truth": self._score.summary() if self.truth is not None else None,
            "image_sizes": sorted({f"{w}x{h}" for h, w in self._sizes}),
        }
