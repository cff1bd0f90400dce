"""`mca up crisis` and its description; the documentation of the node."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import CrisisPost
from mca_perception_msgs.srv import ClassifyCrisis

from mca_perception.ros.descriptions import LaunchError, crisis
from mca_perception.ros.parameters import load_schema, markdown_table
from tests.support import layouts
from tests.support.processes import kill_with_children

pytestmark = pytest.mark.xdist_group("test_crisis_launch")


def test_one_node_with_the_shipped_model() -> None:
    (node,) = crisis({})
    assert (node.executable, node.namespace, node.name) == ("crisis_node", "/crisis", "crisis")
    assert node.remappings == ()
    schema = load_schema("crisis")
    assert all(schema[name].problem(value) == "" for name, value in node.parameters.items())


def test_the_stream_may_come_from_elsewhere() -> None:
    (node,) = crisis({"posts": "/feed/posts", "namespace": "room/crisis/"})
    assert (node.namespace, node.remappings) == ("/room/crisis", (("posts", "/feed/posts"),))
    with pytest.raises(LaunchError, match="does not exist"):
        crisis({"post": "/feed"})


def test_documentation_holds_the_parameters(repository: Path) -> None:
    text = (repository / "docs" / "crisis.md").read_text(encoding="utf-8")
    assert markdown_table("crisis") in text, "docs/crisis.md is stale: put markdown_table('crisis') there"


def test_mca_up_starts_a_node_that_answers_and_has_what_the_layout_shows(
    client: Any, repository: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mca_perception.cli.main", "up", "crisis"], stdout=subprocess.PIPE, text=True
    )
    try:
        post = CrisisPost(text="Bridge collapsed near the hospital")
        answer = client.call(ClassifyCrisis, "/crisis/classify", timeout=90, post=post)
        assert answer.success
        assert answer.report.humanitarian == "infrastructure_and_utility_damage"
        shown = layouts.names(layouts.read(repository, "crisis"))
        client.wait(lambda: shown <= client.offered(), what="topics and services of the layout")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        kill_with_children(process)
        process.communicate()
