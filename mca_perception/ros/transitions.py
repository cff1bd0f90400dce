"""What every lifecycle transition of our nodes has in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

__all__ = ["FAILURE", "SUCCESS", "ManagedNode", "transition"]

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class ManagedNode(Protocol):
    """A lifecycle node that can go back when a transition fails half-way.

    Attributes:
        state: name of the lifecycle state.
    """

    state: str

    def report(self, error: Exception) -> None:
        """Make an error known."""

    def undo(self) -> None:
        """Go back to the present state."""

    def get_logger(self) -> Any:
        """The node's logger."""


NodeType = TypeVar("NodeType", bound=ManagedNode)
_Transition = Callable[[NodeType, LifecycleState], TransitionCallbackReturn]


def transition(reached: str) -> Callable[[_Transition[NodeType]], _Transition[NodeType]]:
    """Log what a transition raises (rclpy drops it silently) and remember the state it reached."""

    def decorate(callback: _Transition[NodeType]) -> _Transition[NodeType]:
        @wraps(callback)
        def run(node: NodeType, state: LifecycleState) -> TransitionCallbackReturn:
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
