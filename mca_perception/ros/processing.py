"""What happens to one frame on a worker's thread: decode and perceive; then, in order, track, measure, publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage

from mca_perception.errors import InvalidImageError, error_text
from mca_perception.objects import Objects
from mca_perception.pipeline import Tiling
from mca_perception.ros.conversions import FrameInfo, best_first, stamp_ns
from mca_perception.ros.defect_messages import DefectRule
from mca_perception.ros.depth_input import DepthInput
from mca_perception.ros.engine import EngineSlot, Settings
from mca_perception.ros.frame_policy import DEACTIVATED
from mca_perception.ros.frames import PendingFrame
from mca_perception.ros.images import decode_compressed, decode_image
from mca_perception.ros.outputs import Outputs
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.statistics import Statistics
from mca_perception.tracking import ByteTracker

__all__ = ["OUT_OF_MEMORY", "FrameProcessor", "Perceived", "drop_cause", "guarded", "settings_from"]

OUT_OF_MEMORY = "out_of_memory"
"""Cause of a drop: the machine or the accelerator had no memory left for this frame."""

PROCESSING_FAILED = "processing_failed"

_MEMORY_WORDS = ("failed to allocate", "out of memory", "bad_alloc", "bad allocation", "insufficient memory")

Result = TypeVar("Result")


def settings_from(parameters: NodeParameters) -> Settings:
    """The pipeline's settings, as the parameters are now."""
    return Settings(
        score_threshold=parameters["score_threshold"],
        classes=tuple(name for name in parameters["classes"] if name),
        top_k=parameters["top_k"],
        identify=parameters["identification"],
        reject_unknown=parameters["reject_unknown"],
        inspect=parameters["inspection"],
        tiling=Tiling.parse(parameters["tiles"], parameters["tiles_from_objects"]),
    )


def drop_cause(error: Exception) -> str:
    """The cause under which a frame that raised an error is counted."""
    if isinstance(error, InvalidImageError):
        return str(getattr(error, "cause", "invalid_image"))
    text = str(error).lower()
    # ONNX Runtime and OpenCV have no exception of their own for it.
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return OUT_OF_MEMORY
    return PROCESSING_FAILED


def guarded(
    step: Callable[[], Result], statistics: Statistics, on_drop: Callable[[str, str], None]
) -> Result | None:
    """The result of a step of a frame; whatever goes wrong costs this frame only.

    Args:
        step: what is done.
        statistics: counts the frame as dropped where that fails.
        on_drop: told of cause and reason.
    """
    try:
        return step()
    except Exception as error:
        cause, text = drop_cause(error), error_text(error)
        statistics.count_drop(cause, text)
        on_drop(cause, text)
        return None


class Perceived(NamedTuple):
    """What was found in a frame.

    Attributes:
        image: uint8 ``[H, W, 3]`` RGB.
        objects: best score first.
        model: what found them.
        rule: how it decides on defects.
        queue_ms: how long the frame had waited for a worker and, where several cameras share the model, for its turn.
        done: when it was found, monotonic seconds.
    """

    image: NDArray[np.uint8]
    objects: Objects
    model: str
    rule: DefectRule | None
    queue_ms: float
    done: float


class FrameProcessor:
    """Handles frames from activation to deactivation: perceives several at once, publishes them in order.

    Attributes:
        last_image: the image that was perceived last, uint8 ``[H, W, 3]``; ``None`` before the first.
    """

    def __init__(
        self,
        engines: EngineSlot,
        outputs: Outputs,
        statistics: Statistics,
        parameters: NodeParameters,
        depth: DepthInput,
        *,
        on_drop: Callable[[str, str], None],
        on_left_out: Callable[[str, str], None],
    ) -> None:
        """Start with sequence number 0 and without tracks.

        Args:
            engines: the model in use.
            outputs: where results go.
            statistics: counts them.
            parameters: of the node; read anew for every frame.
            depth: measures objects.
            on_drop: told of cause and reason of every frame that failed.
            on_left_out: told of name and reason of every output that could not be published beside the objects.
        """
        self._engines = engines
        self._outputs = outputs
        self._statistics = statistics
        self._parameters = parameters
        self._depth = depth
        self._on_drop = on_drop
        self._on_left_out = on_left_out
        self._sequence = 0
        self._tracker: ByteTracker | None = None
        self._tracked: tuple[int, tuple[int, int], int] = (0, (0, 0), 0)
        self.last_image: NDArray[np.uint8] | None = None

    def perceive(self, frame: PendingFrame) -> Perceived | None:
        """What a frame shows; may be called from several threads. Whatever is wrong with it costs this frame only.

        Args:
            frame: the frame.

        Returns:
            What was found; None for a frame that was dropped.
        """
        return guarded(lambda: self._perceive(frame), self._statistics, self._on_drop)

    def publish(
        self, frame: PendingFrame, perceived: Perceived | None, is_stopped: Callable[[], bool]
    ) -> None:
        """Track and measure what was found, and publish it; frames come in the order in which they were taken.

        Args:
            frame: the frame.
            perceived: what was found; None for a frame that was dropped.
            is_stopped: whether results are no longer wanted.
        """
        if perceived is not None:
            guarded(lambda: self._publish(frame, perceived, is_stopped), self._statistics, self._on_drop)

    def _perceive(self, frame: PendingFrame) -> Perceived:
        queue_ms = (time.perf_counter() - frame.arrived) * 1e3
        message, parameters = frame.message, self._parameters
        image = decode_compressed(message) if isinstance(message, CompressedImage) else decode_image(message)
        with self._engines.use() as engine:
            objects = engine.perceive(image, frame.container, settings_from(parameters))
            rule = engine.defect_rule(parameters["defect_fpr"])
            return Perceived(image, best_first(objects), engine.model, rule, queue_ms, time.perf_counter())

    def _publish(self, frame: PendingFrame, perceived: Perceived, is_stopped: Callable[[], bool]) -> None:
        order_ms = (time.perf_counter() - perceived.done) * 1e3
        parameters, header = self._parameters, frame.message.header
        objects = self._track(perceived.objects, stamp_ns(header.stamp))
        surfaces = None
        if parameters["depth"]:
            surfaces = self._depth.measure(
                objects,
                header,
                nearest_m=parameters["depth_nearest_m"],
                farthest_m=parameters["depth_farthest_m"],
                patience_s=parameters["depth_patience_ms"] / 1e3,
            )
        if is_stopped():
            self._statistics.count_drop(DEACTIVATED)
            return
        image = self.last_image = perceived.image
        outputs = self._outputs
        message = outputs.publish_objects(
            objects,
            FrameInfo(header, frame.container.container_id, perceived.model, self._sequence, perceived.rule),
            received_ns=frame.received_ns,
            queue_ms=perceived.queue_ms,
            surfaces=surfaces,
        )
        timing = message.timing
        self._sequence += 1
        cyclic_ms = self._statistics.count_processed(
            latency_ms=timing.pipeline_latency_ms,
            processing_ms=timing.processing_ms,
            queue_ms=perceived.queue_ms,
            steps_ms={**objects.timings_ms, "order": order_ms},
        )
        latencies = {
            "cyclic": cyclic_ms,
            "processing": timing.processing_ms,
            "pipeline": timing.pipeline_latency_ms,
        }
        for name, publish in (
            ("alarms", partial(outputs.alarms.publish, message)),
            ("detections", partial(outputs.annotations.publish_detections, objects, header)),
            ("instance_mask", partial(outputs.publish_mask, objects, header)),
            ("detections_3d", partial(outputs.publish_detections_3d, objects, surfaces, header)),
            ("object_points", partial(outputs.publish_points, image, objects, surfaces, header)),
            ("overlay", partial(outputs.annotations.publish_overlay, image, objects, header)),
            ("heat map", partial(outputs.alarms.explain, image, objects, header, self._engines)),
            ("debug", partial(outputs.publish_latencies, latencies)),
        ):
            self._publish_beside(name, publish)

    def _publish_beside(self, name: str, publish: Callable[[], object]) -> None:
        """Publish something beside objects that are out and counted: a failure is told, and costs this output only."""
        try:
            publish()
        except Exception as error:
            text = error_text(error)
            self._statistics.note_error(f"{name} left out: {text}")
            self._on_left_out(name, text)

    def _track(self, objects: Objects, stamp: int) -> Objects:
        """Give objects lasting ids. Another image size, or an older stamp, is another recording: tracks end."""
        if not self._parameters["tracking"]:
            self._tracker = None
            return objects
        keep_lost = self._parameters["tracking_keep_lost"]
        before, size, kept = self._tracked
        if self._tracker is None or kept != keep_lost:
            self._tracker = ByteTracker(keep_lost=keep_lost)
        elif size != objects.image_size or stamp < before:
            self._tracker.reset()
        self._tracked = (stamp, objects.image_size, keep_lost)
        ids = self._tracker.update(objects.boxes, objects.scores, objects.labels)
        return objects.replace(track_ids=ids)
