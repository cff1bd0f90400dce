"""The layouts for Foxglove and RViz can be read and name topics that the node has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy")

from mca_perception.ros.views import CONFIGURED_NAMESPACE, RVIZ_TOPICS
from mca_perception.ros.web_view import TOPICS

OFFERED = {name if name.startswith("/") else f"/perception/{name}" for name in TOPICS}


def test_the_foxglove_layout_names_topics_that_are_offered(repository: Path) -> None:
    text = (repository / "config" / "foxglove.json").read_text()
    layout = json.loads(text)
    shown: list[str] = []

    def look(part: object) -> None:
        if isinstance(part, str):
            shown.append(part)
        elif isinstance(part, dict):
            for key in ("first", "second"):
                look(part[key])

    look(layout["layout"])
    assert sorted(shown) == sorted(layout["configById"])
    named = set(re.findall(r'"(/[a-z_0-9/]+)', text))
    assert named
    assert named <= OFFERED


def test_the_rviz_configuration_names_topics_of_the_node(repository: Path) -> None:
    content = yaml.safe_load((repository / "config" / "perception.rviz").read_text())
    topics = {
        display["Topic"]["Value"]
        for display in content["Visualization Manager"]["Displays"]
        if "Topic" in display
    }
    assert topics == {f"{CONFIGURED_NAMESPACE}/{name}" for name in RVIZ_TOPICS}  # launch files move these
    assert topics <= OFFERED
