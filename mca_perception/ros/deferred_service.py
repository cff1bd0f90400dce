"""A service whose callback returns at once and whose answer follows when it is there.

rclpy offers coroutines for this, but its executors poll every coroutine that waits, again and again. Here nothing runs
until the answer comes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from rclpy.qos import QoSProfile

__all__ = ["DeferredService"]


class DeferredService:
    """Offers a service; many requests may wait for their answers at the same time."""

    def __init__(
        self,
        node: Node,
        kind: Any,
        name: str,
        answer: Callable[[Any, Any], Future[Any]],
        *,
        profile: QoSProfile,
    ) -> None:
        """Offer a service.

        Args:
            node: offers it.
            kind: type of the service.
            name: of the service.
            answer: from request and empty response to a future with the response. It must not block, and the future
                must not hold an exception. It may be fulfilled on any thread.
            profile: its depth is the number of requests that may come in while the executor is busy.
        """
        self._node = node
        self._lock = threading.Lock()
        self._service = cast(Any, node.create_service(kind, name, answer, qos_profile=profile))
        self._send = self._service.send_response
        self._service.send_response = self._send_later  # the executor hands the callback's result to it

    def close(self) -> None:
        """Withdraw the service; answers that are not there yet are not sent."""
        self._node.destroy_service(self._service)

    def _send_later(self, answer: Future[Any], header: Any) -> None:
        def send(done: Future[Any]) -> None:
            with self._lock:
                try:
                    self._send(done.result(), header)
                except InvalidHandle:
                    self._node.get_logger().warning("an answer came after its service was withdrawn")

        answer.add_done_callback(send)
