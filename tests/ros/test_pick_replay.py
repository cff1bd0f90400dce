"""A folder of picks is replayed as a robot cell would produce it: container, view before, views after, question."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception_msgs.msg import PerceivedObjects
from sensor_msgs.msg import CompressedImage

from mca_perception.datasets.armbench import VIEWS
from mca_perception.errors import SourceError
from mca_perception.ros import qos
from mca_perception.ros.diagnostics import read_status
from mca_perception.ros.pick_replay import TOPICS
from mca_perception.ros.sources import open_source

pytestmark = pytest.mark.xdist_group("test_pick_replay")

Scene = Callable[..., NDArray[np.uint8]]
OUTLINE = [[[12, 30], [48, 30], [48, 66], [12, 66]]]
"""Around the first disc of a scene."""


def write_pick(root: Path, name: str, product: str, views: dict[str, NDArray[np.uint8]]) -> None:
    folder = root / "Picks" / name
    folder.mkdir(parents=True)
    (folder / "container.json").write_text(json.dumps({"P-red": {}, "P-green": {}}))
    (folder / "annotation.json").write_text(
        json.dumps({"GT_ID": product, "polygons": dict.fromkeys(views, OUTLINE)})
    )
    for view, image in views.items():
        cv2.imwrite(str(folder / f"{view}.jpg"), image[..., ::-1])


@pytest.fixture
def picks(tmp_path: Path, colour_references: Path, scene: Scene) -> Path:
    root = tmp_path / "cell"
    shutil.copytree(colour_references, root / "Reference_Images")
    write_pick(root, "101", "P-red", {view: scene("red", "green") for view in VIEWS})
    write_pick(root, "102", "P-green", {view: scene("green") for view in VIEWS[:2]})
    write_pick(root, "103", "P-red", {VIEWS[1]: scene("red")})  # without the view before the pick
    return root


def test_frames_carry_container_and_pick(picks: Path) -> None:
    source = open_source(str(picks))
    assert source.description.startswith("3 picks in")
    first, second = list(source)
    assert (first.container_id, first.product_ids) == ("101", ("P-red", "P-green"))
    assert second.pick is not None
    assert (second.pick.product_id, list(second.pick.views)) == ("P-green", list(VIEWS[:2]))
    assert source.skipped == 1


def test_a_folder_without_usable_picks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Picks" / "1").mkdir(parents=True)
    with pytest.raises(SourceError, match="has no Reference_Images"):
        open_source(str(tmp_path))
    (tmp_path / "Reference_Images").mkdir()
    with pytest.raises(SourceError, match="no usable pick"):
        open_source(str(tmp_path))


def test_picks_are_shown_and_identified(
    start_node: Callable[..., Any], client: Any, colour_bundle: Path, colour_gallery: Path, picks: Path
) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    start_node(
        "perception_node", model=str(colour_bundle), gallery=str(colour_gallery), frame_policy="every_frame"
    )
    after = {view: client.collect(CompressedImage, topic, qos.IMAGE_OUTPUT) for view, topic in TOPICS.items()}
    statuses = client.collect(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
    objects = client.collect(PerceivedObjects, "objects", qos.RESULTS)  # last: the source waits for this one
    source = start_node("source_node", source=str(picks), wait_for_perception=True, wait_for_consumers=1)
    assert source.wait(90) == 0, source.output()
    client.wait(lambda: len(objects) == 2, what="objects of both images")
    assert [message.container_id for message in objects] == ["101", "102"]
    client.wait(lambda: len(after["ToteWallRGB"]) == 2, what="views after the picks")
    assert {view: len(messages) for view, messages in after.items()} == {
        "ToteWallRGB": 2,
        "OnArmLowRGB": 1,
        "FarTrayRGB": 1,
    }
    assert after["FarTrayRGB"][0].header.frame_id == "FarTrayRGB"
    assert "2 of 2 picks identified, 2 right (1.000)" in source.output()
    assert re.search("pick 102: P-green, annotated P-green, 2 views", source.output())
    client.wait(
        lambda: any(
            (facts := read_status(array, "/perception", "source")) is not None
            and (facts["picks_correct"], facts["frames_skipped"]) == ("2", "1")
            for array in statuses
        ),
        what="the counts",
    )


def test_without_a_gallery_picks_are_shown_and_the_reason_is_logged(
    start_node: Callable[..., Any], colour_bundle: Path, picks: Path
) -> None:
    namespace = "/bare"
    start_node("perception_node", namespace=namespace, model=str(colour_bundle), frame_policy="every_frame")
    source = start_node("source_node", namespace=namespace, source=str(picks), wait_for_perception=True)
    assert source.wait(90) == 0
    assert "pick 101 was not identified: the node has no gallery" in source.output()
    assert "0 of 2 picks identified" in source.output()
