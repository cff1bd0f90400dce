"""The action ``index``, executed on threads of its own so that it can be cancelled and searches go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import rclpy
from mca_perception_msgs.action import BuildIndex
from rclpy.action.server import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node

from mca_perception.errors import McaError
from mca_perception.retrieval.indexing import Progress
from mca_perception.ros.retrieval_service import RetrievalService, to_feedback

__all__ = ["IndexAction"]

_POLL_S = 0.2
# One thread executes the goal, one takes requests to cancel it.
_THREADS = 2


class IndexAction:
    """Offers the action; one goal at a time, further ones are refused.

    Args:
        node: whose action it is.
        service: does the work.
        report: told of errors that are not the caller's.
    """

    def __init__(self, node: Node, service: RetrievalService, *, report: Callable[[Exception], None]) -> None:
        self._service, self._report = service, report
        self._running = threading.Lock()
        self._closing = False
        self._hidden = rclpy.create_node(
            f"_{node.get_name()}_index",
            namespace=node.get_namespace(),
            context=node.context,
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._server = ActionServer(
            self._hidden,
            BuildIndex,
            f"{node.get_namespace().rstrip('/')}/index",
            self._execute,
            goal_callback=self._accept,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),
        )
        self._executor = MultiThreadedExecutor(_THREADS, context=node.context)
        self._executor.add_node(self._hidden)
        self._thread = threading.Thread(target=self._run, name=f"{node.get_name()}-index", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether a goal is being executed."""
        return self._running.locked()

    def _accept(self, goal: Any) -> GoalResponse:
        # The lock is taken later: rclpy does not execute a goal whose caller cannot be told that it is accepted.
        return GoalResponse.REJECT if self._closing or self.is_running else GoalResponse.ACCEPT

    def _execute(self, handle: Any) -> BuildIndex.Result:
        if not self._running.acquire(blocking=False):
            handle.abort()
            text = "another job began at the same time; wait for it, or cancel it"
            return BuildIndex.Result(success=False, message=text)

        def show(progress: Progress) -> None:
            handle.publish_feedback(to_feedback(progress))

        try:
            counts, result = self._service.build(
                handle.request, show, lambda: self._closing or handle.is_cancel_requested
            )
            if not counts.cancelled:
                handle.succeed()
            elif handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
        except Exception as error:
            if not isinstance(error, McaError):
                self._report(error)
            handle.abort()
            text = str(error) if isinstance(error, McaError) else f"internal error: {error}"
            result = BuildIndex.Result(success=False, message=text)
        finally:
            self._running.release()
        return result

    def _run(self) -> None:
        while not self._closing or self.is_running:
            try:
                self._executor.spin_once(timeout_sec=_POLL_S)
            except ExternalShutdownException:
                return

    def close(self) -> None:
        """Stop a running goal after its batch, which stays, and withdraw the action."""
        self._closing = True
        self._executor.wake()
        self._thread.join()
        self._executor.shutdown(timeout_sec=1.0)
        self._server.destroy()
        self._hidden.destroy_node()
