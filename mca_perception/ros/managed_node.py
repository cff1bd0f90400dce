"""What the lifecycle nodes have in common: transitions that can fail half-way, autostart, error reports, clean end."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from mca_perception.errors import error_text
from mca_perception.ros.diagnostics import PERIOD_S, DiagnosticsPublisher, perception_status
from mca_perception.ros.parameters import NodeParameters, ParameterSpec
from mca_perception.ros.runner import Spinner, run_node
from mca_perception.ros.statistics import Statistics
from mca_perception.ros.watchdog import may_take_long

__all__ = ["LOG_EVERY_S", "ManagedNode", "run_managed", "transition"]

LOG_EVERY_S = 5.0

_TRANSITIONS = {
    "on_configure": "configuring",
    "on_activate": "activating",
    "on_deactivate": "deactivating",
    "on_cleanup": "cleaningup",
    "on_shutdown": "shuttingdown",
}
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

NodeType = TypeVar("NodeType", bound="ManagedNode")
_Transition = Callable[[NodeType, LifecycleState], TransitionCallbackReturn]


def transition(reached: str) -> Callable[[_Transition[NodeType]], _Transition[NodeType]]:
    """Log what a transition raises (rclpy drops it silently) and remember the state it reached."""

    def decorate(callback: _Transition[NodeType]) -> _Transition[NodeType]:
        @wraps(callback)
        def run(node: NodeType, state: LifecycleState) -> TransitionCallbackReturn:
            try:
                with may_take_long(), node.reporting(_TRANSITIONS[callback.__name__]):
                    result = callback(node, state)
            except Exception as error:
                node.fail(error)
                node.undo()
                return _FAILURE
            if result == _SUCCESS:
                node.state = reached
                node.get_logger().info(reached)
            return result

        return run

    return decorate


class ManagedNode(LifecycleNode, ABC):
    """A lifecycle node that goes back when a transition fails half-way.

    Its subclasses say what configuring and activating is (``on_configure`` and ``on_activate`` under ``transition``),
    and how both are taken back.

    Attributes:
        state: name of the lifecycle state.
        building: what is being loaded or built, for the diagnostics; empty when nothing is.
        parameters: of the node.
    """

    def __init__(self, name: str, *, role: str = "", **options: Any) -> None:
        """Declare the parameters.

        Args:
            name: of the node and of its table of parameters.
            role: what others look for on ``/diagnostics``; the name when not given.
            options: of the lifecycle node.
        """
        super().__init__(name, **options)
        self.state = "unconfigured"
        self.building = ""
        self.parameters = NodeParameters(
            self, name, may_set=self._may_set, on_change=self._on_parameter, refuse=self._refuse
        )
        self._statistics = Statistics()
        self._diagnostics = DiagnosticsPublisher(self, role or name)

    @abstractmethod
    def _stop(self) -> None:
        """Take back what activating did, as far as it got; nothing is published afterwards."""

    @abstractmethod
    def _release(self) -> None:
        """Take back what configuring did, as far as it got."""

    @transition("inactive")
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working; nothing is published afterwards."""
        self._stop()
        return super().on_deactivate(state)

    @transition("unconfigured")
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release what configuring loaded."""
        result = super().on_cleanup(state)
        self._release()
        return result

    @transition("finalized")
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release everything."""
        self.close()
        return _SUCCESS

    def start(self) -> None:
        """Configure and activate, when ``autostart`` is set. After a failure the node waits to be asked."""
        if self.parameters["autostart"] and self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def close(self) -> None:
        """Stop and release everything."""
        self._stop()
        self._release()

    def undo(self) -> None:
        """Go back to the present state after a transition that failed half-way."""
        if self.state != "active":
            self._stop()
        if self.state == "unconfigured":
            self._release()

    @contextmanager
    def reporting(self, doing: str) -> Iterator[None]:
        """Publish diagnostics while a transition keeps the executor's thread, with ``doing`` as the state."""
        ended = threading.Event()

        def publish() -> None:
            while True:
                self._diagnostics.publish(*self._status(doing, {"building": self.building}))
                if ended.wait(PERIOD_S):
                    return

        self._statistics.note_transition("")
        thread = threading.Thread(target=publish, name=f"{self.get_name()}-{doing}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.building = ""

    def tell(self, building: str) -> None:
        """Show on ``/diagnostics`` and in the log what is being loaded or built; empty once it is done."""
        self.building = building
        if building:
            self.get_logger().info(building)

    def fail(self, error: Exception) -> None:
        """Log why a transition failed, and show it on ``/diagnostics`` until the next one."""
        text = error_text(error)
        self._log_error(text)
        self._statistics.note_transition(text)

    def report(self, error: Exception) -> None:
        """Log an error and show it on ``/diagnostics``."""
        text = error_text(error)
        self._log_error(text)
        self._statistics.note_error(text)

    def _status(self, state: str, facts: Mapping[str, Any]) -> tuple[bytes, str, dict[str, Any]]:
        """Level, line and facts for ``/diagnostics`` during a transition, when only the counts can be relied on."""
        return perception_status(state, self._statistics.snapshot(), facts)

    def _log_error(self, text: str) -> None:
        self.get_logger().error(text)

    def _may_set(self, spec: ParameterSpec) -> bool:
        """Whether a parameter may change now."""
        return spec.live or self.state == "unconfigured"

    def _on_parameter(self, name: str) -> None:
        """A parameter has changed."""

    def _refuse(self, name: str, value: Any) -> str:
        """Why a parameter cannot have a value that lies within its limits; empty when it can."""
        return ""


def run_managed(make: Callable[[], ManagedNode]) -> None:
    """Run a node as a process until it is interrupted; never returns."""

    def body(node: ManagedNode, spinner: Spinner) -> int:
        node.start()
        spinner.serve(node.parameters["heartbeat_s"])
        return 0

    sys.exit(run_node(make, body))
