"""Process frame shared by all nodes: set-up before ``rclpy.init``, spinning, signals, clean end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from mca_perception.errors import McaError
from mca_perception.ros.ending import END_S, ends_within
from mca_perception.ros.transport import prepare_process
from mca_perception.ros.watchdog import watching

__all__ = ["BAD_INPUT", "FAILED", "Spinner", "StopSignal", "run_node"]

FAILED, BAD_INPUT = 1, 2

_POLL_S = 0.1  # rclpy cannot be woken by a Python signal handler: the longest reaction to Ctrl-C

NodeType = TypeVar("NodeType", bound=Node)


class StopSignal:
    """Remembers SIGINT and SIGTERM, so that a node can end where it stands well."""

    def __init__(self) -> None:
        self._received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, *_: object) -> None:
        self._received = True

    def is_received(self) -> bool:
        """Whether the process was asked to end."""
        return self._received


class Spinner:
    """Runs a node's callbacks until something happens. Always with a time limit: some executors hang without."""

    def __init__(self, node: Node, stop: StopSignal) -> None:
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._stop = stop

    def add(self, node: Node) -> None:
        """Run the callbacks of a further node, too."""
        self._executor.add_node(node)

    def is_stopped(self) -> bool:
        """Whether the process was asked to end (signal or context shutdown)."""
        return self._stop.is_received() or not rclpy.ok()

    def spin_until(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Run callbacks until ``done()``.

        Args:
            done: asked after every callback.
            timeout_s: seconds; ``None`` waits as long as it takes.

        Returns:
            Whether it is done; ``False`` after the timeout or when the process was asked to end.
        """
        end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while not self.is_stopped():
            if done():
                return True
            rest = end - time.monotonic()
            if rest <= 0:
                return False
            try:
                self._executor.spin_once(timeout_sec=min(_POLL_S, rest))
            except ExternalShutdownException:
                return False
        return False

    def serve(self, heartbeat_s: float) -> None:
        """Run callbacks until the process was asked to end.

        Args:
            heartbeat_s: a callback that takes longer ends the process by SIGKILL; 0 lets it.
        """
        with watching(heartbeat_s) as watchdog:

            def alive() -> bool:
                watchdog.feed()
                return False

            self.spin_until(alive)

    def call(self, client: Any, request: Any, timeout_s: float) -> Any:
        """Answer of a service; ``None`` when there was none in time."""
        future = client.call_async(request)
        if self.spin_until(future.done, timeout_s):
            return future.result()
        client.remove_pending_request(future)
        return None

    def close(self) -> None:
        """Stop running callbacks."""
        self._executor.shutdown(timeout_sec=1.0)


def run_node(
    make: Callable[[], NodeType],
    body: Callable[[NodeType, Spinner], int],
    args: Sequence[str] | None = None,
) -> int:
    """Run one node as a process.

    Args:
        make: creates the node.
        body: its work; returns the exit code. ``node.close()`` is called afterwards where it exists.
        args: command line, with ``--ros-args``; the process' own when not given.

    Returns:
        Exit code: what ``body`` returned, 2 for bad input.
    """
    stop = StopSignal()
    notice = prepare_process()
    rclpy.init(args=list(args) if args is not None else None, signal_handler_options=SignalHandlerOptions.NO)
    node = spinner = None
    code = FAILED
    try:
        node = make()
        node.get_logger().info(notice)
        spinner = Spinner(node, stop)
        code = body(node, spinner)
    except (McaError, InvalidParameterValueException, InvalidParameterTypeException) as error:
        sys.stderr.write(f"error: {error}\n")
        code = BAD_INPUT
    finally:
        if node is not None:
            close = getattr(node, "close", None)
            if close is not None:
                close()
        if spinner is not None:
            spinner.close()
        with ends_within(END_S, code):
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()
    return code
