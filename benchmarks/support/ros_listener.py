"""A subscriber: when each result arrived after its image's stamp, and what the node used meanwhile.

Says ``ready`` once its publisher is there, and ends with its figures as JSON: after so many results, or when asked to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
READY_S = 90.0


def usage(pid: int) -> tuple[float, float]:
    """Processor seconds and resident MiB of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(fields[11]) + int(fields[12])) / _TICKS, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Arrivals:
    """What arrived.

    Attributes:
        frames: by stamp, the milliseconds from the stamp to the arrival, in the pipeline, and in its model.
    """

    def __init__(self, node: Any, pid: int) -> None:
        """Start empty.

        Args:
            node: its clock is read.
            pid: of the process to watch; 0 for none.
        """
        self._node = node
        self._pid = pid
        self._moments: list[tuple[float, float]] = []
        self._resident = 0.0
        self.frames: dict[int, tuple[float, float, float]] = {}

    def take_objects(self, message: Any) -> None:
        """A node's result."""
        now = self._node.get_clock().now().nanoseconds
        timing = message.timing
        model = timing.backbone_ms + timing.segmentation_ms + timing.identification_ms
        self._keep(now, message.header.stamp, timing.processing_ms, model)

    def take_image(self, message: Any) -> None:
        """The camera's image itself."""
        self._keep(self._node.get_clock().now().nanoseconds, message.header.stamp, 0.0, 0.0)

    def _keep(self, now: int, stamp: Any, pipeline_ms: float, model_ms: float) -> None:
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        self.frames[stamp_ns] = ((now - stamp_ns) / 1e6, pipeline_ms, model_ms)
        cpu, self._resident = usage(self._pid) if self._pid else (0.0, 0.0)
        self._moments.append((time.monotonic(), cpu))

    def facts(self) -> dict[str, Any]:
        """All of it: ``seconds`` and ``cpu_s`` are those between the first and the last arrival."""
        first, last = (self._moments[0], self._moments[-1]) if self._moments else ((0.0, 0.0), (0.0, 0.0))
        return {
            "frames": self.frames,
            "seconds": last[0] - first[0],
            "cpu_s": last[1] - first[1],
            "rss_mib": self._resident,
        }


def main() -> int:
    """Arguments: namespace, what to take (``objects``, ``raw`` or ``jpeg``), results, process to watch (0: none)."""
    import rclpy
    from mca_perception_msgs.msg import PerceivedObjects
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import CompressedImage, Image

    from mca_perception.ros import qos
    from mca_perception.ros.runner import Spinner, StopSignal
    from mca_perception.ros.transport import prepare_process

    namespace, what, frames, pid = sys.argv[1:5]
    stop = StopSignal()
    prepare_process()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("bench_listener")
    spinner = Spinner(node, stop)
    arrivals = Arrivals(node, int(pid))
    topic = f"{namespace}/objects"
    if what == "objects":
        node.create_subscription(PerceivedObjects, topic, arrivals.take_objects, qos.RESULTS)
        if not spinner.spin_until(lambda: bool(node.count_publishers(topic)), READY_S):
            return 1
    elif what == "raw":
        node.create_subscription(Image, f"{namespace}/image", arrivals.take_image, qos.EVERY_IMAGE)
    else:
        node.create_subscription(
            CompressedImage, f"{namespace}/image/compressed", arrivals.take_image, qos.EVERY_IMAGE
        )
    print("ready", flush=True)
    spinner.spin_until(lambda: len(arrivals.frames) >= int(frames))
    print(json.dumps(arrivals.facts()), flush=True)
    spinner.close()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
