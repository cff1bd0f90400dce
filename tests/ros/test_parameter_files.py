"""Parameter files: which section is whose, and what is no such file."""

from pathlib import Path

import pytest

from mca_perception.ros.descriptions import LAUNCHES, LaunchError, armbench, multi_camera
from mca_perception.ros.parameter_files import file_parameters

FILE = """
/**:
  ros__parameters: {top_k: 3, score_threshold: 0.4}
/left:
  perception:
    ros__parameters: {score_threshold: 0.5}
/right/perception:
  ros__parameters:
    score_threshold: 0.6
    nested: {deep: {name: [a, b]}}
/**/root:
  ros__parameters: {below: anything}
/*/source:
  ros__parameters: {rate_hz: 2.0}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "parameters.yaml").write_text(FILE)
    return str(tmp_path / "parameters.yaml")


@pytest.mark.parametrize(
    ("node", "parameters"),
    [
        ("/left/perception", {"top_k": 3, "score_threshold": 0.5}),
        ("/right/perception", {"top_k": 3, "score_threshold": 0.6, "nested.deep.name": ["a", "b"]}),
        ("/left/source", {"top_k": 3, "score_threshold": 0.4, "rate_hz": 2.0}),
        ("/a/b/source", {"top_k": 3, "score_threshold": 0.4}),
        ("/perception", {"top_k": 3, "score_threshold": 0.4}),
        ("/root", {"top_k": 3, "score_threshold": 0.4, "below": "anything"}),
        ("/a/b/root", {"top_k": 3, "score_threshold": 0.4, "below": "anything"}),
    ],
)
def test_a_node_gets_its_sections(file: str, node: str, parameters: dict[str, object]) -> None:
    assert file_parameters(file, node) == parameters


def test_the_file_wins_over_arguments(file: str) -> None:
    node, source = armbench(
        {"namespace": "left", "score_threshold": "0.9", "source": "totes", "params_file": file}
    )
    assert (node.parameters["score_threshold"], node.parameters["top_k"]) == (0.5, 3)
    assert source.parameters["rate_hz"] == 2.0


def test_a_container_hands_it_to_its_nodes(file: str) -> None:
    (cameras,) = multi_camera({"params_file": file})
    assert cameras.parameters["params_file"] == file
    (tasks,) = armbench({"tasks": "container", "params_file": file})
    assert tasks.parameters["params_file"] == file


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_launch_takes_one(launch: str, file: str) -> None:
    nodes = LAUNCHES[launch][1]({"params_file": file})
    assert all(node.parameters["top_k"] == 3 for node in nodes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("/other: {ros__parameters: {a: 1}}", "says nothing about /perception/perception"),
        ("a: [", "cannot be read"),
        ("- a", "the file must hold names"),
        ("/perception: 3", "/perception must hold names"),
        ("/**: {ros__parameters: [1]}", "must hold names and values"),
        ("#" * (2 << 20), "more than"),
        (None, "cannot be read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(LaunchError, match=message):
        armbench({"params_file": str(tmp_path / "p.yaml")})
