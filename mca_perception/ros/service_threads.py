"""Services that take their time, answered on a thread of their own so that images keep coming in meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from mca_perception.errors import McaError
from mca_perception.ros import qos

__all__ = ["ServiceThread"]

_POLL_S = 0.2


class ServiceThread:
    """Some services of a node, answered one after the other.

    rclpy knows no callback groups per thread, so they belong to a hidden node (``_<node>_<name>``), with the names
    that the visible node would give them.
    """

    def __init__(self, node: Node, name: str, *, report: Callable[[Exception], None]) -> None:
        """Start the thread.

        Args:
            node: whose services these are.
            name: tells the threads of a node apart.
            report: told of errors that are not the caller's.
        """
        self._visible = node
        self._report = report
        self._hidden = rclpy.create_node(
            f"_{node.get_name()}_{name}",
            namespace=node.get_namespace(),
            context=node.context,
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._hidden)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{node.get_name()}-{name}", daemon=True)
        self._thread.start()

    def add(self, kind: Any, name: str, answer: Callable[[Any, Any], None]) -> None:
        """Offer a service.

        Args:
            kind: type of the service; its responses have ``success`` and ``message``.
            name: relative to the node.
            answer: fills the response; what it raises becomes the answer: nothing a caller sends ends the node.
        """

        def call(request: Any, response: Any) -> Any:
            try:
                answer(request, response)
                response.success = True
            except McaError as error:
                response.message = str(error)
            except Exception as error:
                self._report(error)
                response.message = f"internal error: {error}"
            return response

        full_name = self._visible.resolve_service_name(name)
        self._hidden.create_service(kind, full_name, call, qos_profile=qos.REQUESTS)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._executor.spin_once(timeout_sec=_POLL_S)
            except ExternalShutdownException:
                return

    def close(self) -> None:
        """Finish the call in progress and withdraw the services."""
        self._closed = True
        self._executor.wake()
        self._thread.join()
        self._executor.shutdown(timeout_sec=1.0)
        self._hidden.destroy_node()
