"""The node ``viewer``: an ordinary subscriber that shows objects in a table and keeps overlays and a summary.

Run it with ``python -m mca_perception.ros.viewer_node --ros-args -p out:=<folder>``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from mca_perception_msgs.msg import FrameTiming, PerceivedObject, PerceivedObjects
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage

from mca_perception.errors import DatasetError
from mca_perception.ros import qos
from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.diagnostics import drops_in, read_status
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.runner import FAILED, Spinner, run_node
from mca_perception.ros.session_log import FrameRecord, ObjectRow, SessionLog
from mca_perception.ros.tables import ResultView
from mca_perception.ros.truth import Truth

__all__ = ["ViewerNode", "main"]

_FINISHED_GRACE_S = 5.0
_OVERLAY_GRACE_S = 3.0
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
            (self.out / "overlays").mkdir(parents=True, exist_ok=True)
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
        patience = self.parameters["idle_timeout_s"]
        if self.log.sent is not None:
            patience = min(patience, _FINISHED_GRACE_S)
        return self.log.is_complete() or time.monotonic() - self.last_message > patience

    def has_overlays(self) -> bool:
        """Whether there is an overlay for every frame."""
        return self.out is None or len(self.log.overlays) >= len(self.log.frames)

    def write_summary(self) -> dict[str, Any]:
        """Write ``summary.json``; returns its content."""
        summary = self.log.summary()
        if self.out is not None:
            _write(self.out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        return summary

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
        self._names[stamp] = f"{len(self.log.frames):04d}_{frame.name}"
        self._view.show(len(self.log.frames), frame)

    def _on_overlay(self, message: CompressedImage) -> None:
        self.last_message = time.monotonic()
        stamp = stamp_ns(message.header.stamp)
        self.log.overlays.add(stamp)
        if self.out is not None:
            name = self._names.get(stamp, f"frame_{stamp}")
            _write(self.out / "overlays" / f"{name}.jpg", bytes(message.data))

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


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def main() -> None:
    """Show results until all have come, then write the summary. Exit code 1 when none came."""
    with ResultView() as view:

        def make() -> ViewerNode:
            return ViewerNode(view)

        def body(node: ViewerNode, spinner: Spinner) -> int:
            spinner.spin_until(node.is_over)
            spinner.spin_until(node.has_overlays, _OVERLAY_GRACE_S)
            summary = node.write_summary()
            if not summary["frames"]["received"]:
                node.get_logger().error(f"no objects were published in {node.get_namespace()}")
                return FAILED
            return 0

        code = run_node(make, body)
    sys.exit(code)


if __name__ == "__main__":
    main()
