"""The node of a tool inside another program: with a context of its own, gone when the tool has done its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from mca_perception.ros.ending import END_S, ends_within

__all__ = ["private_node"]

_FAILED = 1


@contextmanager
def private_node(name: str) -> Iterator[tuple[Node, SingleThreadedExecutor]]:
    """A node without services or log topic, and the executor that runs its callbacks, as long as the block runs.

    Command-line arguments and signals stay with the program. If the middleware hangs while the node is taken down,
    the process ends with code 1: nothing else can end it then.

    Args:
        name: hidden from lists of nodes when it begins with an underscore.
    """
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node(name, context=context, start_parameter_services=False, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, executor
    finally:
        executor.shutdown(timeout_sec=1.0)
        with ends_within(END_S, _FAILED):
            node.destroy_node()
            rclpy.try_shutdown(context=context)
