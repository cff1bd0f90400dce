from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from rclpy.parameter import Parameter

from mca_perception.ros.parameters import NodeParameters, ParameterSpec, load_schema, markdown_table


@pytest.mark.parametrize(
    "node",
    [
        "perception",
        "cameras",
        "tasks",
        "identification",
        "defects",
        "source",
        "viewer",
        "web_view",
        "manager",
    ],
)
def test_documentation_holds_the_generated_table(node: str, repository: Path) -> None:
    text = (repository / "docs" / "ros.md").read_text(encoding="utf-8")
    assert markdown_table(node) in text, f"docs/ros.md is stale: put markdown_table({node!r}) there"


@pytest.mark.parametrize(
    ("entry", "value", "problem"),
    [
        ({"type": "int", "default_value": 5, "validation": {"bounds<>": [1, 9]}}, 9, ""),
        ({"type": "int", "default_value": 5, "validation": {"bounds<>": [1, 9]}}, 10, "must lie in"),
        ({"type": "int", "default_value": 5}, True, "must be int"),
        ({"type": "double", "default_value": 0.5}, 1, "must be double"),
        (
            {"type": "string", "default_value": "a", "validation": {"one_of<>": [["a", "b"]]}},
            "c",
            "one of a, b",
        ),
        (
            {"type": "string", "default_value": "a", "validation": {"not_empty<>": []}},
            "",
            "must not be empty",
        ),
        ({"type": "string_array", "default_value": []}, ["x"], ""),
        ({"type": "string_array", "default_value": []}, "x", "must be string_array"),
        ({"type": "string_array", "default_value": []}, 3, "must be string_array"),
    ],
)
def test_values_are_checked(entry: dict[str, Any], value: object, problem: str) -> None:
    found = ParameterSpec.from_yaml("p", {"description": "Something.", **entry}).problem(value)
    assert (problem in found) if problem else found == ""


def test_a_default_outside_its_own_limits_is_an_error() -> None:
    entry = {"type": "int", "default_value": 0, "description": "", "validation": {"bounds<>": [1, 9]}}
    with pytest.raises(ValueError, match="default of p"):
        ParameterSpec.from_yaml("p", entry)


@pytest.mark.parametrize(("name", "live"), [("top_k", True), ("model", False), ("frame_policy", False)])
def test_schema_says_what_is_live(name: str, live: bool) -> None:
    assert load_schema("perception")[name].live is live


def test_values_follow_the_parameter_server(client: Any) -> None:
    changed: list[str] = []
    configured = [False]
    parameters = NodeParameters(
        client.node,
        "perception",
        may_set=lambda spec: spec.live or not configured[0],
        on_change=changed.append,
    )
    assert parameters["top_k"] == 5
    assert parameters["providers"] == []

    def set_one(name: str, value: object) -> Any:
        return client.node.set_parameters([Parameter(name, value=value)])[0]

    assert set_one("model", "models/base").successful
    configured[0] = True
    assert set_one("top_k", 3).successful
    assert (parameters["top_k"], parameters["model"], changed) == (3, "models/base", ["model", "top_k"])
    for name, value, reason in [
        ("model", "models/large", "unconfigured"),
        ("top_k", 0, "top_k"),
        ("score_threshold", 1.5, "score_threshold"),
        ("overlay_quality", "high", "type"),
    ]:
        result = set_one(name, value)
        assert not result.successful
        assert reason in result.reason
    assert (parameters["top_k"], parameters["model"]) == (3, "models/base")


def test_a_wrong_value_at_start_ends_the_process_and_an_unknown_name_is_said(
    start_node: Callable[..., Any],
) -> None:
    node = start_node("perception_node", top_k=1000, scor_threshold=0.5, use_sim_time=False)
    assert node.wait() == 2
    assert "top_k" in node.output()
    assert (
        "parameter scor_threshold does not exist and is ignored; did you mean score_threshold?"
        in node.output()
    )
    assert "use_sim_time" not in node.output()
