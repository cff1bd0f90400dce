"""Lifecycle nodes that look closer at objects which another node has segmented; they chain.

One of them alone can run on another machine than the segmentation, or be started and stopped beside it. In one process
(``tasks_node``) they share the model. The node ``perception`` does the same in one pass over the crops, and is faster.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from mca_perception_msgs.msg import PerceivedObject, PerceivedObjects
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image

from mca_perception.errors import InvalidImageError
from mca_perception.objects import Objects
from mca_perception.ros import qos
from mca_perception.ros.annotations import Annotations
from mca_perception.ros.conversions import stamp_ns
from mca_perception.ros.diagnostics import PERIOD_S, drops_in, perception_status, read_status
from mca_perception.ros.engine import Engine, EngineSlot, Settings
from mca_perception.ros.frame_policy import DEACTIVATED, FrameQueue
from mca_perception.ros.frames import NO_CONTAINER, Container, FrameWorkers
from mca_perception.ros.images import decode_compressed, decode_image
from mca_perception.ros.inputs import Inputs
from mca_perception.ros.managed_node import LOG_EVERY_S, transition
from mca_perception.ros.model_node import ModelNode
from mca_perception.ros.processing import guarded
from mca_perception.ros.stamp_matching import StampMatcher

__all__ = ["Found", "ObjectNode", "objects_of"]

_OBJECTS, _MASK, _IMAGE = "objects", "mask", "image"

_PATIENCE_S = {_OBJECTS: 3.0, _MASK: 30.0, _IMAGE: 30.0}
"""Objects come last: image and mask wait for the nodes before this one, their queues included."""

_OBJECT_BYTES = 8192
"""What an object takes in memory, about."""


class _Picture(NamedTuple):
    """An image message, and the container at the time of its arrival."""

    message: Image | CompressedImage
    container: Container


class Found(NamedTuple):
    """What was found in a frame's image, within which container, and how long it took, in all and by step."""

    image: NDArray[np.uint8]
    objects: Objects
    container: Container
    spent_ms: float
    steps_ms: Mapping[str, float]


class ObjectNode(ModelNode):
    """Reads ``image`` (or ``image/compressed``), ``segmented/objects`` and ``segmented/instance_mask`` of one stamp.

    What comes out on ``objects`` is what came in, with the fields that the node fills. ``detections`` and the overlay
    show all that is known by then.
    """

    def __init__(
        self, name: str, *, turns: AbstractContextManager[Any] | None = None, **options: Any
    ) -> None:
        """Declare the parameters.

        Args:
            name: of the node.
            turns: entered to take objects and work on them, where several nodes of a process share the model.
            options: of the lifecycle node.
        """
        super().__init__(name, role="perception", **options)
        self._turns = turns
        self._output: Any = None
        self._annotations: Annotations | None = None
        self._latest: Found | None = None
        self._inputs: Inputs | None = None
        self._matcher: StampMatcher | None = None
        self._frames: FrameQueue[dict[str, Any]] | None = None
        self._workers: FrameWorkers[dict[str, Any], Found | None] | None = None
        self._dropped_before: dict[str, int] = {}
        self.create_subscription(DiagnosticArray, "/diagnostics", self._hear, qos.DIAGNOSTICS)
        self.create_timer(PERIOD_S, self._watch)

    @abstractmethod
    def _offer(self, engines: EngineSlot) -> None:
        """Offer the node's services."""

    @abstractmethod
    def _settings(self) -> Settings:
        """What the pipeline shall do."""

    @abstractmethod
    def _fill(self, messages: list[PerceivedObject], found: Objects, engine: Engine) -> None:
        """Write what is known of the objects into their messages."""

    def _beside(self, message: PerceivedObjects, found: Found) -> Sequence[Callable[[], object]]:
        """What is published of a frame beside its objects."""
        assert self._annotations is not None
        return (
            partial(self._annotations.publish_detections, found.objects, message.header),
            partial(self._annotations.publish_overlay, found.image, found.objects, message.header),
        )

    def _container(self) -> Container:
        """What limits the products."""
        return NO_CONTAINER

    @transition("inactive")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load bundle and gallery."""
        engines = self._open_model()
        self._output = self.create_lifecycle_publisher(PerceivedObjects, "objects", qos.RESULTS)
        self._annotations = Annotations(self, self.parameters)
        self._offer(engines)
        return super().on_configure(state)

    def _trial(self) -> Callable[[Engine], Objects] | None:
        found, settings = self._latest, self._settings()
        if found is None:
            return None
        return lambda engine: engine.look_closer(found.image, found.objects, found.container, settings)

    @transition("active")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the workers."""
        result = super().on_activate(state)
        policy = self.parameters["frame_policy"]
        frames: FrameQueue[dict[str, Any]] = FrameQueue(
            policy, depth=self.parameters["queue_depth"], on_drop=self._statistics.count_drop
        )
        matcher = StampMatcher(_PATIENCE_S, on_match=frames.put, on_drop=self._drop)
        self._frames, self._matcher = frames, matcher
        self._workers = FrameWorkers(
            frames,
            lambda messages: guarded(
                lambda: self._look_closer(messages), self._statistics, self._tell_dropped
            ),
            lambda messages, found: guarded(
                lambda: self._publish(messages[_OBJECTS], found, frames), self._statistics, self._tell_dropped
            ),
            parallel=self.parameters["parallel_frames"],
            turns=self._turns,
        )
        options = {"input_transport": "auto", "input_qos": "auto", "frame_policy": policy}
        self._inputs = Inputs(self, options, partial(self._receive, _IMAGE))
        mask, objects = partial(self._receive, _MASK), partial(self._receive, _OBJECTS)
        self._inputs.subscribe(Image, "segmented/instance_mask", mask, qos.EVERY_IMAGE)
        self._inputs.subscribe(PerceivedObjects, "segmented/objects", objects, qos.RESULTS)
        return result

    def _receive(self, kind: str, message: Any) -> None:
        assert self._matcher is not None
        stamp = stamp_ns(message.header.stamp)
        if kind == _OBJECTS:
            self._statistics.count_received(stamp, self.get_clock().now().nanoseconds)
        size = _OBJECT_BYTES * (1 + len(message.objects)) if kind == _OBJECTS else len(message.data)
        item = _Picture(message, self._container()) if kind == _IMAGE else message
        self._matcher.receive(kind, stamp, item, size)

    def _drop(self, cause: str, text: str) -> None:
        self._statistics.count_drop(cause, text)
        if text:
            self._tell_dropped(cause, text)

    def _tell_dropped(self, cause: str, text: str) -> None:
        self.get_logger().warning(f"objects dropped ({cause}): {text}", throttle_duration_sec=LOG_EVERY_S)

    def _look_closer(self, messages: dict[str, Any]) -> Found:
        """Fill the message of a frame; on several threads at once."""
        assert self._engines is not None
        started = time.perf_counter()
        message: PerceivedObjects = messages[_OBJECTS]
        picture, container = messages[_IMAGE]
        image = decode_compressed(picture) if isinstance(picture, CompressedImage) else decode_image(picture)
        objects = objects_of(message, messages[_MASK])
        with self._engines.use() as engine:
            found = engine.look_closer(image, objects, container, self._settings())
            if engine.model != message.model:
                message.model = f"{message.model} {engine.model}".strip()
            self._fill(message.objects, found, engine)
        message.container_id = container.container_id or message.container_id
        return Found(image, found, container, (time.perf_counter() - started) * 1e3, found.timings_ms)

    def _publish(
        self, message: PerceivedObjects, found: Found | None, frames: FrameQueue[dict[str, Any]]
    ) -> None:
        if found is None:
            return
        message.timing.identification_ms += float(found.steps_ms.get("identification", 0.0))
        message.timing.processing_ms += found.spent_ms
        now = self.get_clock().now()
        message.timing.published = now.to_msg()
        latency = (now.nanoseconds - stamp_ns(message.header.stamp)) / 1e6
        message.timing.pipeline_latency_ms = latency
        if frames.closed:
            self._statistics.count_drop(DEACTIVATED)
            return
        self._output.publish(message)
        self._statistics.count_processed(
            latency_ms=latency, processing_ms=found.spent_ms, steps_ms=found.steps_ms
        )
        self._latest = found
        for publish in self._beside(message, found):
            try:
                publish()
            except Exception as error:  # the objects are out and counted
                self.report(error)

    def _stop(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._matcher is not None:
            self._matcher.close()
            self._matcher = None
        if self._workers is not None:
            self._workers.stop()
            self._workers = self._frames = self._latest = None

    def _release(self) -> None:
        if self._output is not None:
            self.destroy_lifecycle_publisher(self._output)
            self._output = None
        if self._annotations is not None:
            self._annotations.close()
            self._annotations = None
        super()._release()

    def _facts(self) -> dict[str, Any]:
        """Further keys and values for the diagnostics."""
        return {}

    def _hear(self, array: DiagnosticArray) -> None:
        """Remember what the node before this one in a chain has dropped: nobody after it hears of these images."""
        place = self.resolve_topic_name("segmented/objects").rpartition("/")[0]
        facts = read_status(array, place, "perception")
        if facts is not None:
            task = place.rpartition("/")[2]
            self._dropped_before = {
                cause if "/" in cause else f"{task}/{cause}": count
                for cause, count in drops_in(facts).items()
            }

    def _watch(self) -> None:
        facts: dict[str, Any] = {"frame_policy": self.parameters["frame_policy"], "building": self.building}
        if self._matcher is not None:
            self._matcher.expire()
        if self._inputs is not None and self._frames is not None:
            facts |= {"frames_waiting": len(self._frames), **self._inputs.facts()}
        if self._engines is not None:
            with self._engines.use() as engine:
                facts |= engine.facts()
        if self._output is not None:
            facts["objects_subscribers"] = self._output.get_subscription_count()
        if self._annotations is not None:
            facts |= self._annotations.facts()
        own, before = self._statistics.snapshot(), self._dropped_before
        counts = replace(own, received=own.received + sum(before.values()), drops={**before, **own.drops})
        self._diagnostics.publish(*perception_status(self.state, counts, {**facts, **self._facts()}))


def objects_of(message: PerceivedObjects, mask: Image) -> Objects:
    """The objects that a message and the instance mask of the same stamp describe, in the message's order.

    Ids that last, and the products that are known, come along; what was found out about defects does not.

    Args:
        message: the objects.
        mask: ``mono16``, as large as the image.

    Raises:
        InvalidImageError: the mask is no id image of the image's size, or two objects have one id.
    """
    size = (int(message.image_height), int(message.image_width))
    if mask.encoding != "mono16" or (int(mask.height), int(mask.width)) != size:
        raise InvalidImageError(
            f"instance mask is {mask.encoding} {mask.width} x {mask.height}; "
            f"the objects need mono16 {size[1]} x {size[0]}"
        )
    names = tuple(dict.fromkeys(entry.label for entry in message.objects)) or ("object",)
    entries = message.objects
    ids = np.array([entry.mask_id for entry in entries], np.uint16)
    if len(np.unique(ids)) != len(ids) or not ids.all():
        raise InvalidImageError(
            "the objects' mask_id are not unique numbers from 1 on; use those of one frame"
        )
    return Objects(
        image_size=size,
        boxes=np.array([_corners(entry) for entry in entries], np.float32).reshape(-1, 4),
        scores=np.array([entry.score for entry in entries], np.float32),
        labels=np.array([names.index(entry.label) for entry in entries], np.int64),
        label_names=names,
        instance_mask=_pixels(mask),
        instance_ids=ids,
        track_ids=np.array([entry.id for entry in entries], np.int64),
        **_products(entries),
    )


def _products(entries: Sequence[PerceivedObject]) -> dict[str, Any]:
    """Products of objects, as the fields of :class:`.Objects` have them; none when no object has any."""
    most = max((len(entry.products) for entry in entries), default=0)
    if not most:
        return {}
    scores = np.full((len(entries), most), np.nan, np.float32)
    for i, entry in enumerate(entries):
        scores[i, : len(entry.products)] = [product.score for product in entry.products]
    return {
        "product_ids": [tuple(product.product_id for product in entry.products) for entry in entries],
        "product_scores": scores,
    }


def _corners(entry: PerceivedObject) -> tuple[float, float, float, float]:
    x, y = entry.bbox.center.position.x, entry.bbox.center.position.y
    half_width, half_height = entry.bbox.size_x / 2, entry.bbox.size_y / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def _pixels(mask: Image) -> NDArray[np.uint16]:
    """A view of the mask's pixels, uint16 ``[H, W]``."""
    order = ">u2" if mask.is_bigendian else "<u2"
    needed = mask.step * mask.height
    if mask.step < 2 * mask.width or len(mask.data) < needed:
        raise InvalidImageError(
            f"instance mask has {len(mask.data)} bytes; {mask.height} rows of {mask.step} bytes are needed"
        )
    rows = np.frombuffer(mask.data, np.uint8, needed).reshape(mask.height, mask.step)
    return rows[:, : 2 * mask.width].view(order).astype(np.uint16, copy=False)
