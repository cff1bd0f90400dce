"""A process that holds several lifecycle nodes on one model: the backbone is in memory once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from mca_perception.deploy.sessions.turns import Turns
from mca_perception.ros.managed_node import ManagedNode
from mca_perception.ros.node_descriptions import NodeDescription
from mca_perception.ros.parameter_files import file_parameters
from mca_perception.ros.parameters import NodeParameters
from mca_perception.ros.runner import Spinner, run_node

__all__ = ["NodeContainer", "run_container"]


class NodeContainer(Node):
    """Serves its nodes in the order in which they ask: a fast one does not starve a slow one.

    Its parameters say how many frames are worked on at the same time, those of all nodes counted together.

    Attributes:
        nodes: those that it holds.
        parameters: of the container.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.nodes: list[ManagedNode] = []
        self.parameters = NodeParameters(self, name)
        self._turns = Turns(self.parameters["parallel_frames"])

    def hold(self, kind: Callable[..., ManagedNode], description: NodeDescription, **options: Any) -> None:
        """Make a node; it loads nothing yet.

        Args:
            kind: its class.
            description: its name, namespace, parameters and topics.
            options: for the class; in place of turns, if they say so.

        Raises:
            LaunchError: the parameter file cannot be read.
        """
        rules = (("__node", description.name), *description.remappings)
        parameters = dict(description.parameters)
        if file := self.parameters["params_file"]:
            parameters |= file_parameters(file, description.full_name)
        self.nodes.append(
            kind(
                **{"turns": self._turns, **options},
                namespace=description.namespace,
                use_global_arguments=False,
                parameter_overrides=[_parameter(key, value) for key, value in parameters.items()],
                cli_args=["--ros-args", *(word for old, new in rules for word in ("-r", f"{old}:={new}"))],
            )
        )

    def close(self) -> None:
        """Stop all of them."""
        for node in self.nodes:
            node.close()
            node.destroy_node()


def _parameter(name: str, value: Any) -> Parameter[Any]:
    """A parameter of the type of its value; rclpy takes an empty list for bytes."""
    return Parameter(name, Parameter.Type.STRING_ARRAY if value == [] else None, value)


def run_container(make: Callable[[], NodeContainer]) -> None:
    """Run the nodes of a container as a process until it is interrupted; never returns."""

    def body(container: NodeContainer, spinner: Spinner) -> int:
        for node in container.nodes:
            spinner.add(node)
            node.start()
        spinner.serve(container.parameters["heartbeat_s"])
        return 0

    sys.exit(run_node(make, body))
