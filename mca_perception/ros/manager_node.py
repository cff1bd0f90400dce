"""The node ``manager``: brings lifecycle nodes up in order, and again when one of them was started again.

All are configured in order, then all are activated in order, so that nothing publishes before everything has loaded.
Run it with ``python -m mca_perception.ros.manager_node --ros-args -p nodes:='[/perception/perception]'``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node

from mca_perception.errors import McaError
from mca_perception.ros import qos
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.runner import Spinner, run_node

__all__ = ["BringUpError", "ManagerNode", "main"]

_WATCH_S = 1.0
_ANSWER_S = 5.0
_REASON_S = 2.0
_UP = (
    (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_UNCONFIGURED, "configured"),
    (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_INACTIVE, "activated"),
)
_ORDER = (State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE)


class BringUpError(McaError, RuntimeError):
    """A node did not come up."""


class ManagerNode(Node):
    """Brings nodes up; parameters are described in ``docs/ros.md``."""

    def __init__(self, **options: Any) -> None:
        """Connect to the nodes, which may start later.

        Raises:
            BringUpError: no node or one node twice is named.
        """
        super().__init__("manager", **options)
        self.parameters = NodeParameters(self, "manager")
        self.names: list[str] = list(self.parameters["nodes"])
        if not self.names or len(set(self.names)) != len(self.names):
            raise BringUpError(f"nodes is {self.names}; name each lifecycle node to bring up once")
        self._states: dict[str, Any] = {}
        self._changes: dict[str, Any] = {}
        self._taken_down: set[str] = set()
        self._errors: dict[str, str] = {}
        for name in self.names:
            self._states[name] = self.create_client(GetState, f"{name}/get_state")
            self._changes[name] = self.create_client(ChangeState, f"{name}/change_state")
            self.create_subscription(
                TransitionEvent, f"{name}/transition_event", partial(self._on_transition, name), qos.RESULTS
            )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)

    def bring_up(self, names: Sequence[str], spinner: Spinner) -> None:
        """Configure nodes in order, then activate them in order. Nodes that are further on already are left there.

        Raises:
            BringUpError: one did not come up; those activated before are deactivated again, the last one first.
        """
        active: list[str] = []
        try:
            for transition, before, done in _UP:
                for name in names:
                    if self._advance(name, transition, before, spinner):
                        self.get_logger().info(f"{name} {done}")
                        if transition == Transition.TRANSITION_ACTIVATE:
                            active.append(name)
        except BringUpError:
            for name in reversed(active):
                request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
                spinner.call(self._changes[name], request, _ANSWER_S)
            raise

    def was_restarted(self, name: str, spinner: Spinner) -> bool:
        """Whether a node that was up is a new process: it is unconfigured, and nobody took it down."""
        if name in self._taken_down or not self._states[name].service_is_ready():
            return False
        answer = spinner.call(self._states[name], GetState.Request(), _ANSWER_S)
        unconfigured = answer is not None and answer.current_state.id == State.PRIMARY_STATE_UNCONFIGURED
        return unconfigured and name not in self._taken_down

    def _advance(self, name: str, transition: int, before: int, spinner: Spinner) -> bool:
        """Make a transition; returns whether it was needed."""
        limit = self.parameters["timeout_s"]
        if not spinner.spin_until(partial(self._is_there, name), limit):
            raise BringUpError(f"node {name} did not appear within {limit:g} s; is it started, and so named?")
        state = self._state(name, limit, spinner)
        if state is None:
            raise BringUpError(f"node {name} did not tell its state within {limit:g} s")
        if state.id not in _ORDER:
            raise BringUpError(f"node {name} is {state.label}; start it again")
        if state.id != before:
            return False
        self._errors.pop(name, None)  # of earlier attempts
        changed = self._change(name, transition, before, limit, spinner)
        verb = "configure" if transition == Transition.TRANSITION_CONFIGURE else "activate"
        if changed is None:
            raise BringUpError(f"node {name} did not {verb} within {limit:g} s")
        if not changed:
            spinner.spin_until(lambda: bool(self._errors.get(name)), _REASON_S)
            reason = self._errors.get(name) or "its log tells why"
            raise BringUpError(f"node {name} did not {verb}: {reason}")
        return True

    def _is_there(self, name: str) -> bool:
        return bool(self._states[name].service_is_ready() and self._changes[name].service_is_ready())

    def _state(self, name: str, limit: float, spinner: Spinner) -> Any:
        """State of a node; None after the limit. Asked for again: questions get lost while two have just met."""
        end = time.monotonic() + limit
        while (rest := end - time.monotonic()) > 0 and not spinner.is_stopped():
            answer = spinner.call(self._states[name], GetState.Request(), min(_ANSWER_S, rest))
            if answer is not None:
                return answer.current_state
        return None

    def _change(self, name: str, transition: int, before: int, limit: float, spinner: Spinner) -> bool | None:
        """Whether a node made a transition; None after the limit. Where no answer comes, its state tells."""
        request = ChangeState.Request(transition=Transition(id=transition))
        end = time.monotonic() + limit
        future = self._changes[name].call_async(request)
        while (rest := end - time.monotonic()) > 0 and not spinner.is_stopped():
            if spinner.spin_until(future.done, min(_ANSWER_S, rest)):
                return bool(future.result().success)
            state = self._state(name, end - time.monotonic(), spinner)
            if future.done():
                continue
            if state is not None and state.id == before:
                future = self._changes[name].call_async(request)
            elif state is not None and state.id in _ORDER:
                return True
        return None

    def _on_transition(self, name: str, event: TransitionEvent) -> None:
        if event.goal_state.id == State.PRIMARY_STATE_UNCONFIGURED:
            self._taken_down.add(name)
        elif event.goal_state.id == State.PRIMARY_STATE_ACTIVE:
            self._taken_down.discard(name)

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.name in self._states:
                facts = {value.key: value.value for value in status.values}
                self._errors[status.name] = facts.get("transition_error", "")


def _run(node: ManagerNode, spinner: Spinner) -> int:
    """Bring all up, then watch; an error ends the process, and with it the launch."""
    try:
        node.bring_up(node.names, spinner)
        node.get_logger().info(f"all {len(node.names)} nodes are active")
        while not spinner.spin_until(lambda: False, _WATCH_S) and not spinner.is_stopped():
            for name in node.names:
                if node.was_restarted(name, spinner):
                    node.get_logger().warning(f"{name} was started again")
                    node.bring_up([name], spinner)
    except BringUpError:
        if spinner.is_stopped():  # interrupted while it waited
            return 0
        raise
    return 0


def main() -> None:
    """Bring the nodes up and watch them until interrupted."""
    sys.exit(run_node(ManagerNode, _run))


if __name__ == "__main__":
    main()
