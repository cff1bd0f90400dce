"""The node ``viewer``: an ordinary subscriber that shows objects in a table and keeps overlays and a summary.

Run it with ``python -m mca_perception.ros.viewer_node --ros-args -p out:=<folder>``.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from mca_perception_msgs.msg import FrameTiming, PerceivedObject, PerceivedObjects
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage

from mca_perception.errors import DatasetError, SourceError
from mca_perception.ros import qos
from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.diagnostics import drops_in, read_status
from mca_perception.ros.managed_node import LOG_EVERY_S
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.runner import FAILED, Spinner, run_node
from mca_perception.ros.session_log import FrameRecord, ObjectRow, SessionLog
from mca_perception.ros.tables import ResultView
from mca_perception.ros.truth import Truth

__all__ = ["ViewerNode", "main"]

_FINISHED_GRACE_S = 5.0
_OVERLAY_GRACE_S = 3.0
_MAX_NAMES = 1000  # of frames whose overlay has not come; the perception node may leave some out
_STEPS = ("queue", "letterbox", "backbone", "segmentation", "postprocess", "identification", "processing")


class ViewerNode(Node):
    """Collects results; parameters are described in ``docs/ros.md``."""

    def __init__(self, view: ResultView, **options: Any) -> None:
        super().__init__("viewer", **options)
        self.parameters = NodeParameters(self, "viewer")
        self.log = SessionLog(truth=self._read_truth())
        self.last_message = time.monotonic()
        self._view = view
        self._names: dict[int, str] = {}
        self.out = Path(self.parameters["out"]) if self.parameters["out"] else None
        if self.out is not None:
            _make_folder(self.out / "overlays")
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)
        if self.out is not None:  # without a folder nobody looks at overlays, so none need be drawn
            self.create_subscription(
                CompressedImage, "overlay/compressed", self._on_overlay, qos.IMAGE_OUTPUT
            )
        # Last, because others find subscriptions in this order: whoever sees this one is connected to all.
        self.create_subscription(PerceivedObjects, "objects", self._on_objects, qos.RESULTS)

    def _read_truth(self) -> Truth | None:
        """Annotations beside the source, if it has any; the viewer works without."""
        folder = self.parameters["truth"]
        try:
            return Truth.read(folder) if folder else None
        except DatasetError as error:
            self.get_logger().warning(f"products are not compared with annotations: {error}")
            return None

    def is_over(self) -> bool:
        """Whether everything has come, or nothing has for too long (sooner once the source has finished)."""
        patience = self.parameters["idle_timeout_s"] or float("inf")
        if self.log.sent is not None:
            patience = min(patience, _FINISHED_GRACE_S)
        return self.log.is_complete() or time.monotonic() - self.last_message > patience

    def has_overlays(self) -> bool:
        """Whether there is an overlay for every frame."""
        return self.out is None or self.log.overlays >= self.log.received

    def write_summary(self) -> bool:
        """Write ``summary.json``, if there is a folder for it; else the log gets it. Returns whether nothing failed."""
        if self.out is None:
            return True
        summary = self.log.summary()
        try:
            _write(self.out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        except OSError as error:
            self.get_logger().error(f"summary.json was not written ({error}); it is {json.dumps(summary)}")
            return False
        return True

    def _on_objects(self, message: PerceivedObjects) -> None:
        self.last_message = time.monotonic()
        stamp = stamp_ns(message.header.stamp)
        frame = FrameRecord(
            stamp_ns=stamp,
            arrival_s=time.monotonic(),
            latency_ms=(self.get_clock().now().nanoseconds - stamp) / 1e6,
            container_id=message.container_id,
            model=message.model,
            image_size=(message.image_height, message.image_width),
            objects=tuple(_row(item) for item in message.objects),
            timings_ms=_timings(message.timing),
        )
        self.log.add(frame)
        self._name(stamp, f"{self.log.received:04d}_{frame.name}")
        self._view.show(self.log.received, frame)

    def _name(self, stamp: int, name: str) -> None:
        """Name the overlay of a frame, which may have come already: a chain of nodes makes it before the objects."""
        if self.out is None:
            return
        early = self.out / "overlays" / f"frame_{stamp}.jpg"
        if early.exists():
            with suppress(OSError):  # it keeps its name then
                early.replace(early.with_name(f"{name}.jpg"))
            return
        self._names[stamp] = name
        if len(self._names) > _MAX_NAMES:
            del self._names[next(iter(self._names))]

    def _on_overlay(self, message: CompressedImage) -> None:
        self.last_message = time.monotonic()
        stamp = stamp_ns(message.header.stamp)
        self.log.overlays += 1
        if self.out is None:
            return
        name = self._names.pop(stamp, f"frame_{stamp}")
        try:
            _write(self.out / "overlays" / f"{name}.jpg", bytes(message.data))
        except OSError as error:
            self.log.unwritten += 1
            self.get_logger().warning(
                f"{self.log.unwritten} of {self.log.overlays} overlays were not written ({error}); make room there",
                throttle_duration_sec=LOG_EVERY_S,
            )

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        source = read_status(array, self.get_namespace(), "source")
        if source is not None:
            self.log.source = source
            if self.log.sent is None:
                self.last_message = time.monotonic()
        perception = read_status(array, self.get_namespace(), "perception")
        if perception is not None:
            self.log.perception = perception
            self.log.drops = drops_in(perception)


def _row(item: PerceivedObject) -> ObjectRow:
    centre, box = item.bbox.center.position, item.bbox
    best = item.products[0] if item.products else None
    return ObjectRow(
        id=item.id,
        label=item.label,
        score=item.score,
        product=best.product_id if best else "",
        product_score=best.score if best else 0.0,
        box=(
            centre.x - box.size_x / 2,
            centre.y - box.size_y / 2,
            centre.x + box.size_x / 2,
            centre.y + box.size_y / 2,
        ),
    )


def _timings(timing: FrameTiming) -> dict[str, float]:
    return {step: float(getattr(timing, f"{step}_ms")) for step in _STEPS}


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"folder {path} cannot be made ({error.strerror}); choose another `out`") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step; on a full disk nothing is left of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def main() -> None:
    """Show results until all have come, then write the summary. Exit code 1 when none came."""
    with ResultView() as view:

        def make() -> ViewerNode:
            return ViewerNode(view)

        def body(node: ViewerNode, spinner: Spinner) -> int:
            spinner.spin_until(node.is_over)
            spinner.spin_until(node.has_overlays, _OVERLAY_GRACE_S)
            written = node.write_summary()
            if not node.log.received:
                node.get_logger().error(f"no objects were published in {node.get_namespace()}")
                return FAILED
            return 0 if written else FAILED

        code = run_node(make, body)
    sys.exit(code)


if __name__ == "__main__":
    main()
