"""Node parameters from one schema: declaration, checks, current values, tables of the documentation."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

__all__ = ["NodeParameters", "ParameterSpec", "load_schema", "markdown_table"]

_OF_ROS = ("use_sim_time", "start_type_description_service")
_SCHEMA = Path(__file__).with_name("parameters.yaml")
_TYPES: dict[str, tuple[type, int]] = {
    "bool": (bool, ParameterType.PARAMETER_BOOL),
    "int": (int, ParameterType.PARAMETER_INTEGER),
    "double": (float, ParameterType.PARAMETER_DOUBLE),
    "string": (str, ParameterType.PARAMETER_STRING),
    "string_array": (list, ParameterType.PARAMETER_STRING_ARRAY),
}


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of the schema.

    Attributes:
        type: ``bool``, ``int``, ``double``, ``string`` or ``string_array``.
        bounds: smallest and largest value, both allowed.
        choices: allowed values.
        live: may be set while the node is active; others only while it is unconfigured.
    """

    name: str
    type: str
    default: Any
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    not_empty: bool = False
    live: bool = False

    @classmethod
    def from_yaml(cls, name: str, entry: Mapping[str, Any]) -> ParameterSpec:
        """Read one entry of the schema.

        Raises:
            ValueError: the default breaks the entry's own limits.
        """
        validation = entry.get("validation", {})
        spec = cls(
            name=name,
            type=entry["type"],
            default=entry["default_value"],
            description=entry["description"],
            bounds=tuple(validation["bounds<>"]) if "bounds<>" in validation else None,
            choices=tuple(validation["one_of<>"][0]) if "one_of<>" in validation else (),
            not_empty="not_empty<>" in validation,
            live=entry.get("live", False),
        )
        if problem := spec.problem(spec.default):
            raise ValueError(f"default of {problem}")
        return spec

    def problem(self, value: Any) -> str:
        """What is wrong with a value, or an empty string."""
        if not self._has_type(value):
            return f"{self.name} must be {self.type}, got {type(value).__name__}"
        if self.bounds and not self.bounds[0] <= value <= self.bounds[1]:
            return f"{self.name} is {value}, it must lie in [{self.bounds[0]}, {self.bounds[1]}]"
        if self.choices and value not in self.choices:
            return f"{self.name} is {value!r}, choose one of {', '.join(self.choices)}"
        if self.not_empty and not value:
            return f"{self.name} must not be empty"
        return ""

    def _has_type(self, value: Any) -> bool:
        if self.type == "string_array":
            return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        return type(value) is _TYPES[self.type][0]  # bool is no int here

    def convert(self, text: str) -> Any:
        """Turn the text of a launch argument into a value of this parameter's type.

        Raises:
            ValueError: the text is no such value, or breaks the limits.
        """
        try:
            value = text if self.type == "string" else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{self.name} is {text!r}, which is no {self.type}") from error
        if self.type == "double" and type(value) is int:
            value = float(value)
        if problem := self.problem(value):
            raise ValueError(problem)
        return value

    def descriptor(self) -> ParameterDescriptor:
        """Descriptor for ``declare_parameter``, with the limits that ROS itself can check."""
        descriptor = ParameterDescriptor(
            name=self.name,
            type=_TYPES[self.type][1],
            description=self.description,
            additional_constraints=f"one of {', '.join(self.choices)}" if self.choices else "",
        )
        if self.bounds and self.type == "int":
            low, high = (int(bound) for bound in self.bounds)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        elif self.bounds:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=self.bounds[0], to_value=self.bounds[1])
            ]
        return descriptor


@cache
def load_schema(node: str) -> dict[str, ParameterSpec]:
    """Parameters of a node (``perception``, ``source`` or ``viewer``) by name, in the order of the schema."""
    entries = yaml.safe_load(_SCHEMA.read_text(encoding="utf-8"))[node]
    return {name: ParameterSpec.from_yaml(name, entry) for name, entry in entries.items()}


class NodeParameters:
    """Values of a node's declared parameters, kept up to date without asking the server on every frame.

    Example:
        >>> parameters = NodeParameters(node, "perception")  # doctest: +SKIP
        >>> parameters["top_k"]  # doctest: +SKIP
        5
    """

    def __init__(
        self,
        node: Node,
        schema: str,
        *,
        may_set: Callable[[ParameterSpec], bool] = lambda spec: spec.live,
        on_change: Callable[[str], None] = lambda name: None,
        refuse: Callable[[str, Any], str] = lambda name, value: "",
    ) -> None:
        """Declare all parameters of a schema and watch them.

        Args:
            node: the node to declare them on.
            schema: name of the schema.
            may_set: whether a parameter may be set at this moment.
            on_change: called with the name of a parameter after its value changed.
            refuse: why a value within the limits cannot be taken all the same; empty when it can.

        Raises:
            rclpy.exceptions.InvalidParameterValueException: a value given at start breaks the limits.
        """
        self._specs = load_schema(schema)
        self._may_set = may_set
        self._on_change = on_change
        self._refuse = refuse
        self._values: dict[str, Any] = {}
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._take)
        for name in node._parameter_overrides:  # rclpy drops those that nobody declares, and says nothing
            if name not in self._specs and name not in _OF_ROS and not name.startswith("qos_overrides."):
                alike = difflib.get_close_matches(name, self._specs, n=1)
                node.get_logger().warning(
                    f"parameter {name} does not exist and is ignored"
                    + (f"; did you mean {alike[0]}?" if alike else "")
                )
        for spec in self._specs.values():
            if spec.type == "string_array":  # rclpy infers byte_array from an empty list
                node.declare_parameter(spec.name, Parameter.Type.STRING_ARRAY, spec.descriptor())
            else:
                node.declare_parameter(spec.name, spec.default, spec.descriptor())
            value = node.get_parameter_or(spec.name).value
            self._values[spec.name] = spec.default if value is None else value

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def _check(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        for parameter in parameters:
            spec = self._specs.get(parameter.name)
            if spec is None or (parameter.value is None and spec.name not in self._values):
                continue  # not ours, or just being declared without a value
            problem = spec.problem(parameter.value) or self._refuse(spec.name, parameter.value)
            if not problem and spec.name in self._values and not self._may_set(spec):
                problem = f"{spec.name} can only be set while the node is unconfigured; clean up first"
            if problem:
                return SetParametersResult(successful=False, reason=problem)
        return SetParametersResult(successful=True)

    def _take(self, parameters: list[Parameter[Any]]) -> None:
        for parameter in parameters:
            if parameter.name in self._values:
                self._values[parameter.name] = parameter.value
                self._on_change(parameter.name)


def markdown_table(schema: str) -> str:
    """The table of a node's parameters for the documentation."""
    lines = ["| parameter | type | default | allowed | live | meaning |", "|---|---|---|---|---|---|"]
    for spec in load_schema(schema).values():
        allowed = ", ".join(f"`{choice}`" for choice in spec.choices)
        if spec.bounds:
            allowed = (
                f"{spec.bounds[0]:g} to {spec.bounds[1]:g}"
                if abs(spec.bounds[1]) < 1e6
                else f">= {spec.bounds[0]:g}"
            )
        default = (
            yaml.safe_dump(spec.default, default_flow_style=True).splitlines()[0]
            if spec.default != ""
            else '""'
        )
        live = "yes" if spec.live else ""
        lines.append(
            f"| `{spec.name}` | {spec.type} | `{default}` | {allowed} | {live} | {spec.description} |"
        )
    return "\n".join(lines) + "\n"
