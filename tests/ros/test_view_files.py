"""The layouts for Foxglove and RViz can be read and name topics that the node has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy")

from mca_perception.ros.descriptions import LAUNCHES
from mca_perception.ros.views import CONFIGURED_NAMESPACE, RVIZ_TOPICS
from mca_perception.ros.web_view import TOPICS
from tests.support import layouts

CAMERAS = {
    "armbench": ["/perception"],
    "multi_camera": ["/perception/left", "/perception/right"],  # the defaults of the launch description
}


def offered(namespaces: list[str]) -> set[str]:
    return {
        name if name.startswith("/") else f"{namespace}/{name}" for namespace in namespaces for name in TOPICS
    }


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_launch_has_a_layout_that_arranges_all_its_panels(repository: Path, launch: str) -> None:
    layout = layouts.read(repository, launch)
    assert sorted(layouts.panels(layout["layout"])) == sorted(layout["configById"])


@pytest.mark.parametrize("launch", CAMERAS)
def test_layouts_name_topics_that_are_offered(repository: Path, launch: str) -> None:
    named = layouts.names(layouts.read(repository, launch))
    assert named
    assert named <= offered(CAMERAS[launch])


def test_the_rviz_configuration_names_topics_of_the_node(repository: Path) -> None:
    content = yaml.safe_load((repository / "config" / "perception.rviz").read_text())
    topics = {
        display["Topic"]["Value"]
        for display in content["Visualization Manager"]["Displays"]
        if "Topic" in display
    }
    assert topics == {f"{CONFIGURED_NAMESPACE}/{name}" for name in RVIZ_TOPICS}  # launch files move these
    assert topics <= offered(["/perception"])
