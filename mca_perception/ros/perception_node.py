"""The lifecycle node ``perception``: images in, objects out. Logic lives in the modules beside this one.

Run it with ``python -m mca_perception.ros.perception_node --ros-args -p model:=models/nano``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from mca_perception_msgs.srv import SetContainer
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CompressedImage, Image

from mca_perception.errors import InvalidImageError, McaError
from mca_perception.ros import qos
from mca_perception.ros.conversions import FrameInfo
from mca_perception.ros.diagnostics import PERIOD_S, DiagnosticsPublisher, perception_status
from mca_perception.ros.engine import Engine
from mca_perception.ros.frame_policy import FrameQueue
from mca_perception.ros.frames import NO_CONTAINER, FrameWorker, Intake, PendingFrame
from mca_perception.ros.gallery_services import GalleryServices
from mca_perception.ros.images import decode_compressed, decode_image
from mca_perception.ros.outputs import Outputs
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.runner import Spinner, run_node
from mca_perception.ros.statistics import Statistics

__all__ = ["PerceptionNode", "main"]

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

_LOG_EVERY_S = 5.0
_WATCH_S = 0.1
_Transition = Callable[["PerceptionNode", LifecycleState], TransitionCallbackReturn]


def _transition(reached: str) -> Callable[[_Transition], _Transition]:
    """Log what a transition raises (rclpy drops it silently) and remember the state it reached."""

    def decorate(callback: _Transition) -> _Transition:
        @wraps(callback)
        def run(node: PerceptionNode, state: LifecycleState) -> TransitionCallbackReturn:
            try:
                result = callback(node, state)
            except Exception as error:
                node.report(error)
                node.undo()
                return FAILURE
            if result == SUCCESS:
                node.state = reached
                node.get_logger().info(reached)
            return result

        return run

    return decorate


class PerceptionNode(LifecycleNode):
    """Perceives objects in images; see ``docs/ros.md`` for topics, services and parameters.

    Attributes:
        state: name of the lifecycle state.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("perception", **options)
        self.state = "unconfigured"
        self.parameters = NodeParameters(
            self,
            "perception",
            may_set=lambda spec: spec.live or self.state == "unconfigured",
            on_change=self._on_parameter,
        )
        self._statistics = Statistics()
        self._diagnostics = DiagnosticsPublisher(self, "perception")
        self._engine: Engine | None = None
        self._outputs: Outputs | None = None
        self._worker: FrameWorker | None = None
        self._inputs: list[Any] = []
        self._container = NO_CONTAINER
        self._sequence = 0
        self._service: Any = None
        self._gallery_services: GalleryServices | None = None
        self._reported: tuple[Any, ...] = ()
        self._next_report = 0.0
        self.create_timer(_WATCH_S, self._watch)

    # Lifecycle

    @_transition("inactive")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load bundle and gallery."""
        parameters = self.parameters
        self._engine = Engine(
            parameters["model"],
            gallery=parameters["gallery"],
            providers=parameters["providers"],
        )
        self._outputs = Outputs(self, parameters)
        self._service = self.create_service(SetContainer, "set_container", self._set_container)
        self._gallery_services = GalleryServices(
            self, self._engine.pipeline, changed=self._recount_container, report=self.report
        )
        self.get_logger().info(f"model {self._engine.model} on {self._engine.provider}")
        return super().on_configure(state)

    @_transition("active")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images and start the worker."""
        assert self._engine is not None
        assert self._outputs is not None
        result = super().on_activate(state)
        self._publish_labels()
        policy = self.parameters["frame_policy"]
        frames: FrameQueue[PendingFrame] = FrameQueue(
            policy, depth=self.parameters["queue_depth"], on_drop=self._statistics.count_drop
        )
        intake = Intake(
            frames,
            self._statistics,
            container=lambda: self._container,
            now_ns=lambda: self.get_clock().now().nanoseconds,
        )
        self._sequence = 0
        self._worker = FrameWorker(frames, lambda frame: self._handle(frame, frames))
        profile = qos.image_input(self.parameters["input_qos"], policy)
        transport = self.parameters["input_transport"]
        for name, kind, topic in (
            ("raw", Image, "image"),
            ("compressed", CompressedImage, "image/compressed"),
        ):
            if transport in ("auto", name):
                self._inputs.append(self.create_subscription(kind, topic, intake.receive, profile))
        return result

    @_transition("inactive")
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop the worker; nothing is published afterwards."""
        self._stop()
        return super().on_deactivate(state)

    @_transition("unconfigured")
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release models, gallery and publishers."""
        result = super().on_cleanup(state)
        self._release()
        return result

    @_transition("finalized")
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release everything."""
        self.close()
        return SUCCESS

    def start(self) -> None:
        """Configure and activate, when ``autostart`` is set. After a failure the node waits to be asked."""
        if self.parameters["autostart"] and self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Stop the worker and release everything."""
        self._stop()
        self._release()

    def undo(self) -> None:
        """Go back to the present state after a transition that failed half-way."""
        if self.state != "active":
            self._stop()
        if self.state == "unconfigured":
            self._release()

    def report(self, error: Exception) -> None:
        """Log an error and show it on ``/diagnostics``."""
        text = str(error) if isinstance(error, McaError) else f"{type(error).__name__}: {error}"
        self.get_logger().error(text)
        self._statistics.note_error(text)

    def _stop(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _release(self) -> None:
        if self._service is not None:
            self.destroy_service(self._service)
            self._service = None
        if self._gallery_services is not None:
            self._gallery_services.close()
            self._gallery_services = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._container = NO_CONTAINER

    # Frames, on the worker's thread

    def _handle(self, frame: PendingFrame, frames: FrameQueue[PendingFrame]) -> None:
        """Perceive one frame. Whatever is wrong with it costs this frame only."""
        try:
            self._perceive(frame, frames)
        except InvalidImageError as error:
            self._drop(getattr(error, "cause", "invalid_image"), error)
        except Exception as error:
            self._drop("processing_failed", error)

    def _perceive(self, frame: PendingFrame, frames: FrameQueue[PendingFrame]) -> None:
        assert self._engine is not None
        assert self._outputs is not None
        queue_ms = (time.perf_counter() - frame.arrived) * 1e3
        message = frame.message
        image = decode_compressed(message) if isinstance(message, CompressedImage) else decode_image(message)
        objects = self._engine.perceive(
            image,
            frame.container,
            score_threshold=self.parameters["score_threshold"],
            top_k=self.parameters["top_k"],
        )
        if frames.closed:  # deactivated meanwhile
            return
        info = FrameInfo(message.header, frame.container.container_id, self._engine.model, self._sequence)
        timing = self._outputs.publish_objects(
            objects, info, received_ns=frame.received_ns, queue_ms=queue_ms
        )
        self._sequence += 1
        self._statistics.count_processed(
            latency_ms=timing.pipeline_latency_ms, processing_ms=timing.processing_ms
        )
        self._outputs.publish_overlay(image, objects, message.header)

    def _drop(self, cause: str, error: Exception) -> None:
        text = str(error) if isinstance(error, McaError) else f"{type(error).__name__}: {error}"
        self._statistics.count_drop(cause, text)
        self.get_logger().warning(f"frame dropped ({cause}): {text}", throttle_duration_sec=_LOG_EVERY_S)

    # Services, parameters, diagnostics

    def _set_container(
        self, request: SetContainer.Request, response: SetContainer.Response
    ) -> SetContainer.Response:
        assert self._engine is not None
        try:
            container, unknown = self._engine.container(request.container_id, list(request.product_ids))
        except ValueError as error:
            response.message = str(error)
            return response
        except Exception as error:
            self.report(error)
            response.message = f"internal error: {error}"
            return response
        self._container = container
        response.success = True
        response.unknown_products = unknown
        allowed = container.product_ids
        response.message = (
            "all products are allowed"
            if allowed is None
            else f"{len(allowed) - len(unknown)} of {len(allowed)} products are in the gallery"
        )
        return response

    def _recount_container(self) -> None:
        """Products of the container may have come into the gallery, or gone."""
        assert self._engine is not None
        container = self._container
        if container.product_ids is not None:
            self._container, _ = self._engine.container(container.container_id, container.product_ids)

    def _on_parameter(self, name: str) -> None:
        if name == "score_threshold" and self.state == "active":
            self._publish_labels()

    def _publish_labels(self) -> None:
        assert self._engine is not None
        assert self._outputs is not None
        threshold = self._engine.threshold(self.parameters["score_threshold"])
        self._outputs.publish_labels(self._engine.labels, threshold)

    def _watch(self) -> None:
        """Publish diagnostics every second, and at once when the state or the number of listeners changes."""
        outputs = self._outputs.facts() if self._outputs else {}
        situation = (self.state, outputs.get("objects_subscribers"), outputs.get("overlay_subscribers"))
        now = time.monotonic()
        if now < self._next_report and situation == self._reported:
            return
        self._reported, self._next_report = situation, now + PERIOD_S
        facts = {
            "frame_policy": self.parameters["frame_policy"],
            **(self._engine.facts() if self._engine else {}),
            **outputs,
            "container_id": self._container.container_id,
            "container_products": len(self._container.product_ids or ()),
            "container_unknown_products": self._container.unknown,
        }
        self._diagnostics.publish(*perception_status(self.state, self._statistics.snapshot(), facts))


def _run(node: PerceptionNode, spinner: Spinner) -> int:
    node.start()
    spinner.spin_until(lambda: False)
    return 0


def main() -> None:
    """Run the node until it is interrupted."""
    sys.exit(run_node(PerceptionNode, _run))


if __name__ == "__main__":
    main()
