"""The lifecycle node ``perception``: images in, objects out. Logic lives in the modules beside this one.

Run it with ``python -m mca_perception.ros.perception_node --ros-args -p model:=models/nano``.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from mca_perception.objects import Objects
from mca_perception.pipeline import Tiling
from mca_perception.pipeline.camera_files import read_camera
from mca_perception.ros.container_service import ContainerService
from mca_perception.ros.defect_messages import rate_problem
from mca_perception.ros.defect_services import InspectionServices
from mca_perception.ros.depth_input import DepthInput
from mca_perception.ros.diagnostics import PERIOD_S, perception_status
from mca_perception.ros.engine import Engine, EngineSlot
from mca_perception.ros.frame_policy import FrameQueue
from mca_perception.ros.frames import FrameWorkers, Intake, PendingFrame
from mca_perception.ros.gallery_services import GalleryServices
from mca_perception.ros.inputs import Inputs
from mca_perception.ros.managed_node import LOG_EVERY_S, run_managed, transition
from mca_perception.ros.model_node import ModelNode
from mca_perception.ros.outputs import Outputs
from mca_perception.ros.pick_services import PickServices
from mca_perception.ros.processing import FrameProcessor, Perceived, settings_from
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["PerceptionNode", "main"]

_WATCH_S = 0.1


class PerceptionNode(ModelNode):
    """Perceives objects in images; see ``docs/ros.md`` for topics, services and parameters."""

    def __init__(
        self, *, turns: AbstractContextManager[Any] | None = None, batch: int = 1, **options: Any
    ) -> None:
        """Declare the parameters.

        Args:
            turns: entered to take a frame and work on it, where several nodes of a process share the model.
            batch: rows of several nodes of a process that go through a graph at once.
            options: of the lifecycle node.
        """
        super().__init__("perception", **options)
        self._turns = turns
        self._batch = batch
        self._outputs: Outputs | None = None
        self._depth = DepthInput()
        self._frames: FrameQueue[PendingFrame] | None = None
        self._workers: FrameWorkers[PendingFrame, Perceived | None] | None = None
        self._processor: FrameProcessor | None = None
        self._inputs: Inputs | None = None
        self._container: ContainerService | None = None
        self._service_thread: ServiceThread | None = None
        self._reported: tuple[Any, ...] = ()
        self._next_report = 0.0
        self.create_timer(_WATCH_S, self._watch)

    # Lifecycle

    @transition("inactive")
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load bundle and gallery."""
        calibration = self.parameters["camera_info_file"]
        self._depth = DepthInput(read_camera(calibration) if calibration else None)
        engines = self._open_model()
        with engines.use() as engine:
            engine.warm_up()
        self._outputs = Outputs(self, self.parameters)
        self._offer_services(engines)
        return super().on_configure(state)

    def _engine_options(self) -> dict[str, Any]:
        options = {name: self.parameters[name] for name in ("gallery", "providers")}
        return {**super()._engine_options(), **options, "batch": self._batch}

    def _model_problem(self, engine: Engine) -> str:
        problem = engine.class_problem(settings_from(self.parameters).classes)
        return f"{problem}; set `classes` first" if problem else ""

    def _offer_services(self, engines: EngineSlot) -> None:
        self._container = container = ContainerService(self, engines, report=self.report)
        self._service_thread = services = ServiceThread(self, "services", report=self.report)
        GalleryServices(services, engines, changed=container.recount)
        PickServices(
            services,
            engines,
            container=lambda: container.container,
            settings=lambda: settings_from(self.parameters),
        )
        InspectionServices(services, engines, rate=lambda: float(self.parameters["defect_fpr"]))

    @transition("active")
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images and start the workers."""
        assert self._engines is not None
        assert self._outputs is not None
        assert self._container is not None
        container = self._container
        result = super().on_activate(state)
        self._publish_labels()
        frames: FrameQueue[PendingFrame] = FrameQueue(
            self.parameters["frame_policy"],
            depth=self.parameters["queue_depth"],
            on_drop=self._statistics.count_drop,
        )
        intake = Intake(
            frames,
            self._statistics,
            container=lambda: container.container,
            now_ns=lambda: self.get_clock().now().nanoseconds,
        )
        processor = FrameProcessor(
            self._engines,
            self._outputs,
            self._statistics,
            self.parameters,
            self._depth,
            on_drop=self._log_drop,
            on_left_out=self._log_left_out,
        )
        self._frames, self._processor = frames, processor
        self._workers = FrameWorkers(
            frames,
            processor.perceive,
            lambda frame, found: processor.publish(frame, found, lambda: frames.closed),
            parallel=self.parameters["parallel_frames"],
            turns=self._turns,
        )
        self._inputs = Inputs(self, self.parameters, intake.receive, self._depth)
        return result

    def _stop(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._workers is not None:
            self._workers.stop()
            self._workers = self._processor = self._frames = None

    def _release(self) -> None:
        if self._service_thread is not None:
            self._service_thread.close()
            self._service_thread = None
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        super()._release()

    def _log_drop(self, cause: str, reason: str) -> None:
        self.get_logger().warning(f"frame dropped ({cause}): {reason}", throttle_duration_sec=LOG_EVERY_S)

    def _log_left_out(self, output: str, reason: str) -> None:
        self.get_logger().warning(f"{output} left out: {reason}", throttle_duration_sec=LOG_EVERY_S)

    # Services, parameters, diagnostics

    def _trial(self) -> Callable[[Engine], Objects] | None:
        processor, service = self._processor, self._container  # the executor's thread may take them away
        if processor is None or service is None or (image := processor.last_image) is None:
            return None
        container, settings = service.container, settings_from(self.parameters)
        return lambda engine: engine.perceive(image, container, settings)

    def _on_model(self) -> None:
        if self._container is not None:
            self._container.recount()
        self._publish_labels()

    def _refuse(self, name: str, value: Any) -> str:
        if name == "defect_fpr" and self._engines is not None:
            with self._engines.use() as engine:
                return rate_problem(engine.inspector, value)
        if name == "classes" and self._engines is not None:
            with self._engines.use() as engine:
                return engine.class_problem([label for label in value if label])
        if name == "tiles":
            try:
                Tiling.parse(value)
            except ValueError as error:
                return str(error)
        return _missing_package(name, value)

    def _on_parameter(self, name: str) -> None:
        if name == "score_threshold" and self.state == "active":
            self._publish_labels()

    def _publish_labels(self) -> None:
        assert self._engines is not None
        assert self._outputs is not None
        with self._engines.use() as engine:
            threshold = engine.threshold(self.parameters["score_threshold"])
            self._outputs.publish_labels(engine.labels, threshold)

    def _watch(self) -> None:
        """Publish diagnostics every second, and at once when the state or the number of listeners changes."""
        outputs = self._outputs.facts() if self._outputs else {}
        situation = (self.state, outputs.get("objects_subscribers"), outputs.get("overlay_subscribers"))
        now = time.monotonic()
        if now < self._next_report and situation == self._reported:
            return
        self._reported, self._next_report = situation, now + PERIOD_S
        facts: dict[str, Any] = {
            "frame_policy": self.parameters["frame_policy"],
            "parallel_frames": self.parameters["parallel_frames"],
            "building": self.building,
        }
        if self._engines is not None:
            with self._engines.use() as engine:
                facts |= engine.facts()
        facts |= outputs
        if self._inputs is not None and self._frames is not None:
            facts |= {"frames_waiting": len(self._frames), **self._inputs.facts(), **self._depth.facts()}
        if self._container is not None:
            facts |= self._container.facts()
        self._diagnostics.publish(*perception_status(self.state, self._statistics.snapshot(), facts))


def _missing_package(name: str, value: Any) -> str:
    if name == "tracking" and value and importlib.util.find_spec("scipy") is None:
        return "tracking needs scipy, which is not installed; pip install 'mca_perception[tracking]'"
    return ""


def main() -> None:
    """Run the node until it is interrupted."""
    run_managed(PerceptionNode)


if __name__ == "__main__":
    main()
