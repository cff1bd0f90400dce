"""Lifecycle nodes with a model, which the service ``load_model`` exchanges while they work."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from rclpy.parameter import Parameter

from mca_perception.errors import McaError
from mca_perception.objects import Objects
from mca_perception.ros.engine import Engine, EngineSlot
from mca_perception.ros.managed_node import ManagedNode
from mca_perception.ros.model_swap import ModelSwap
from mca_perception.ros.parameters import ParameterSpec
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["ModelNode"]


class ModelNode(ManagedNode):
    """A lifecycle node that opens the bundle named by its parameter ``model`` and offers ``load_model``."""

    def __init__(self, name: str, **options: Any) -> None:
        """Declare the parameters.

        Args:
            name: of the node and of its table of parameters.
            options: of the lifecycle node.
        """
        self._engines: EngineSlot | None = None
        self._is_switching = False
        super().__init__(name, **options)
        self._loader: ServiceThread | None = None

    @abstractmethod
    def _model_problem(self, engine: Engine) -> str:
        """Why the node cannot work with a model; empty when it can."""

    @abstractmethod
    def _trial(self) -> Callable[[Engine], Objects] | None:
        """What shows how a model does on the latest frame, as things are set now; None before the first frame."""

    def _on_model(self) -> None:
        """Another model has taken over."""

    def _engine_options(self) -> dict[str, Any]:
        """Arguments of :class:`.Engine` besides the model."""
        return {
            "session": self.parameters["session"],
            "parallel": self.parameters["parallel_frames"],
            "threads": self.parameters["threads"],
            "on_state": self.tell,
        }

    def _open_model(self) -> EngineSlot:
        """Open the model that is set, and offer to exchange it.

        Raises:
            McaError: it cannot be opened, or the node cannot work with it.
        """
        engine = Engine(self.parameters["model"], **self._engine_options())
        self._engines = EngineSlot(engine)
        if problem := self._model_problem(engine):
            raise McaError(problem)
        # A thread of its own: loading takes its time, and no other service should wait for it.
        self._loader = ServiceThread(self, "loader", report=self.report)
        ModelSwap(
            self._loader,
            self._engines,
            options=self._engine_options,
            problem=self._model_problem,
            trial=self._trial,
            switched=self._hand_over,
        )
        self.get_logger().info(f"model {engine.model} on {engine.choice}")
        return self._engines

    def _hand_over(self, path: str, change: str) -> None:
        """Another model has taken over: pass it on to the executor's thread."""
        if self.executor is not None:
            self.executor.create_task(self._on_switch, path, change)

    def _on_switch(self, path: str, change: str) -> None:
        if self._engines is None:  # cleaned up meanwhile
            return
        self._is_switching = True
        self.set_parameters([Parameter("model", value=path)])
        self._is_switching = False
        self._on_model()
        self.get_logger().info(change)

    def _may_set(self, spec: ParameterSpec) -> bool:
        return super()._may_set(spec) or self._is_switching

    def _release(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._loader = None
        if self._engines is not None:
            self._engines.close()
            self._engines = None
