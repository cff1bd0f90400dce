import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from mca_perception.ros.session_log import FrameRecord, ObjectRow, SessionLog
from mca_perception.ros.truth import ProductScore, Truth

BOX = (0.0, 0.0, 10.0, 10.0)


def record(number: int, products: list[str], container: str = "") -> FrameRecord:
    rows = tuple(ObjectRow(i, "Object", 0.9, product, 0.8, BOX) for i, product in enumerate(products, 1))
    timings = {"processing": 10.0 * (number + 1)}
    return FrameRecord(number, number * 0.5, 100.0 + number, container, "nano@1", (96, 160), rows, timings)


def test_summary_counts_what_came_and_what_did_not() -> None:
    log = SessionLog()
    for number in range(3):
        log.add(record(number, ["A", ""]))
    assert not log.is_complete()
    log.drops = {"truncated": 1}
    log.source = {"finished": "true", "frames_sent": "5", "frames_skipped": "2", "source": "5 images"}
    assert not log.is_complete()
    summary = log.summary()
    assert summary["frames"] == {
        "sent": 5,
        "received": 3,
        "dropped": 1,
        "dropped_by_cause": {"truncated": 1},
        "unreadable_at_source": 2,
        "lost": 1,
        "overlays": 0,
        "overlays_unwritten": 0,
    }
    assert summary["fps"] == 2.0
    assert summary["latency_ms"]["p50"] == 101.0
    assert summary["steps_ms"]["processing"]["p50"] == 20.0
    assert summary["objects"]["per_frame_mean"] == 2.0
    assert (summary["objects"]["with_product"], summary["objects"]["distinct_products"]) == (3, 1)
    assert summary["products_against_truth"] is None
    log.add(record(3, []))
    assert log.is_complete()
    json.dumps(log.summary())


def test_a_camera_that_goes_on_for_weeks_takes_no_more_memory() -> None:
    log, sizes = SessionLog(window=10), []
    for number in range(2000):
        log.add(record(number, ["A", "B"] if number % 2 else ["A"]))
        if number in (99, 1999):
            sizes.append(
                sum(
                    len(pickle.dumps(dict(value) if name == "_steps" else value))
                    for name, value in vars(log).items()
                )
            )
    assert sizes[1] < sizes[0] + 100
    summary = log.summary()
    assert (summary["frames"]["received"], summary["objects"]["total"], summary["fps"]) == (2000, 3000, 2.0)
    assert (summary["objects"]["per_frame_min"], summary["objects"]["per_frame_max"]) == (1, 2)
    assert summary["latency_ms"]["p50"] == 100.0 + 1994.5  # of the latest ten


def test_an_empty_session_has_a_summary_too() -> None:
    assert SessionLog().summary()["frames"]["received"] == 0


@pytest.mark.parametrize(
    ("container", "name"),
    [("", "frame_7"), ("tote-1", "tote-1"), ("../../etc/passwd", "_.._etc_passwd"), ("..", "frame_7")],
)
def test_file_names_stay_in_their_folder(container: str, name: str) -> None:
    assert record(7, [], container).name == name


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        ([(BOX, "A")], [(BOX, "A")], (1, 1, 1)),
        ([(BOX, "A")], [(BOX, "B")], (1, 1, 0)),
        ([(BOX, "A")], [((0, 0, 10, 4.9), "A")], (1, 0, 0)),
        ([(BOX, "A"), ((20, 0, 30, 10), "B")], [((20, 0, 30, 9), "B"), ((1, 0, 10, 10), "A")], (2, 2, 2)),
        ([(BOX, "A")], [(BOX, "A"), (BOX, "A")], (1, 1, 1)),
        ([(BOX, "A")], [], (1, 0, 0)),
        ([], [(BOX, "A")], (0, 0, 0)),
    ],
)
def test_products_are_compared_on_matching_boxes(truth: list, found: list, expected: tuple) -> None:  # type: ignore[type-arg]
    score = ProductScore()
    score.add(truth, found)
    assert (score.annotated, score.found, score.correct) == expected


def test_truth_is_read_from_the_annotations_of_the_container(tmp_path: Path) -> None:
    for folder in ("images", "manifests"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "manifests" / "a.json").write_text(
        json.dumps({"container_id": "tote-a", "products": {"P": {}}})
    )
    polygon = [[2, 3, 12, 3, 12, 9, 2, 9]]
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": polygon,
        "bbox": [2, 3, 10, 6],
        "area": 60,
        "iscrowd": 0,
    }
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 30, "height": 20}],
        "annotations": [{**annotation, "product_id": "P"}],
        "categories": [{"id": 1, "name": "Object"}],
    }
    (tmp_path / "test.json").write_text(json.dumps(document))
    truth = Truth.read(tmp_path)
    assert truth is not None
    assert list(truth.objects("tote-a")) == [((2.0, 3.0, 12.0, 9.0), "P")]
    assert list(truth.objects("tote-b")) == []
    del document["annotations"][0]["product_id"]
    (tmp_path / "test.json").write_text(json.dumps(document))
    assert Truth.read(tmp_path) is None


def test_sources_without_annotations_have_no_truth(tmp_path: Path) -> None:
    (tmp_path / "clip.avi").write_bytes(b"video")
    assert Truth.read(tmp_path / "clip.avi") is None
    assert Truth.read(tmp_path) is None
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "test.json").write_text("[]")
    assert Truth.read(tmp_path / "photos") is None
