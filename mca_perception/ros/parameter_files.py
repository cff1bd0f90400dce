"""Parameter files of ROS 2, for launch descriptions: what they say about a node wins over the launch arguments.

Read here, because a launch description knows its nodes before any of them runs, nodes in a container get their
parameters from it, and with ROS' own rules the section ``/**`` of a file would lose against every launch argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mca_perception.ros.node_descriptions import LaunchError, NodeDescription

__all__ = ["file_parameters", "with_parameter_file"]

_MAX_BYTES = 1 << 20
_KEY = "ros__parameters"


def file_parameters(path: str, full_name: str) -> dict[str, Any]:
    """What a parameter file says about a node.

    Args:
        path: YAML file with sections ``/**``, ``/name/space/node``, or with wildcards (``*`` for one part of a name,
            ``**`` for any); namespaces may be nested. The full name wins over wildcards, later sections over earlier.
        full_name: namespace and name of the node.

    Raises:
        LaunchError: it cannot be read, or is no such file.
    """
    sections = list(_sections(_read(path), "", path))
    matching = [(name, values) for name, values in sections if _matches(name, full_name)]
    matching.sort(key=lambda section: "*" not in section[0])
    return {name: value for _, values in matching for name, value in _flat(values).items()}


def with_parameter_file(nodes: Sequence[NodeDescription], path: str) -> list[NodeDescription]:
    """The same nodes with the parameters of a file; without a path, the same.

    Raises:
        LaunchError: see :func:`file_parameters`; or the file says nothing about any of them.
    """
    if not path:
        return list(nodes)
    found = [file_parameters(path, node.full_name) for node in nodes]
    holds_nodes = any(node.parameters.get("params_file") for node in nodes)
    if not any(found) and not holds_nodes:
        names = ", ".join(node.full_name for node in nodes)
        raise LaunchError(f"parameter file {path} says nothing about {names}; name its sections so, or /**")
    return [
        replace(node, parameters=node.parameters | values) for node, values in zip(nodes, found, strict=True)
    ]


def _read(path: str) -> Any:
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise LaunchError(f"parameter file {path} has more than {_MAX_BYTES} bytes; is it another file?")
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LaunchError(f"parameter file {path} cannot be read: {error}") from error


def _sections(tree: Any, place: str, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names of nodes, wildcards among them, and their parameters."""
    if not isinstance(tree, dict):
        raise LaunchError(f"parameter file {path}: {place or 'the file'} must hold names of nodes and {_KEY}")
    for key, value in tree.items():
        if key != _KEY:
            yield from _sections(value, f"{place}/{str(key).strip('/')}", path)
        elif isinstance(value, dict):
            yield place, value
        else:
            raise LaunchError(f"parameter file {path}: {_KEY} of {place or '/'} must hold names and values")


def _matches(pattern: str, full_name: str) -> bool:
    parts = {"/**": "(/[^/]+)*", "**": ".*", "*": "[^/]*"}
    words = re.split(r"(/\*\*|\*\*|\*)", pattern)
    return re.fullmatch("".join(parts.get(word) or re.escape(word) for word in words), full_name) is not None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters have names with dots between."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
