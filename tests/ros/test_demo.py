"""`mca demo` end to end: separate processes over DDS, pictures and figures at the end."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("rclpy")

from mca_perception.ros.contact_sheet import write_contact_sheet
from mca_perception.ros.demo import DemoFailure, check_end, private_environment
from mca_perception.ros.descriptions import armbench
from mca_perception.ros.processes import ProcessGroup

pytestmark = pytest.mark.xdist_group("test_demo")

Scene = Callable[..., NDArray[np.uint8]]


def demo(*arguments: str, timeout: float = 170.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mca_perception.cli.main", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def tote_folder(root: Path, scene: Scene, count: int) -> Path:
    """A data set in ARMBench's layout whose products are colours."""
    folder = root / "mix-object-tote"
    for name in ("images", "manifests"):
        (folder / name).mkdir(parents=True)
    annotations = []
    for i in range(count):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), scene("red", "blue")[..., ::-1])
        products = {"P-red": {}, "P-blue": {}, "P-unknown": {}}
        manifest = {"container_id": f"tote-{i}", "products": products}
        (folder / "manifests" / f"{i}.json").write_text(json.dumps(manifest))
        for number, (product, x) in enumerate((("P-red", 10), ("P-blue", 60))):
            annotations.append(
                {
                    "id": 2 * i + number + 1,
                    "image_id": i + 1,
                    "category_id": 1,
                    "bbox": [x, 28, 41, 41],
                    "segmentation": [[x, 28, x + 41, 28, x + 41, 69, x, 69]],
                    "area": 1681,
                    "iscrowd": 0,
                    "product_id": product,
                }
            )
    images = [{"id": i + 1, "file_name": f"{i}.png", "width": 160, "height": 96} for i in range(count)]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "Object"}]}
    (folder / "test.json").write_text(json.dumps(document))
    return folder


def test_own_images_with_references_are_identified_and_compared_with_the_truth(
    colour_bundle: Path, colour_references: Path, scene: Scene, tmp_path: Path
) -> None:
    source = tote_folder(tmp_path / "totes", scene, 5)
    shutil.copytree(colour_references, tmp_path / "totes" / "Reference_Images")
    out = tmp_path / "out"
    done = demo("--source", str(source), "--model", str(colour_bundle), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 products" in done.stdout
    assert "5 of 5 frames came through, 0 lost" in done.stdout
    assert "P-blue" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames"]["received"] == 5
    assert summary["products_against_truth"]["annotated_objects"] == 10
    assert summary["products_against_truth"]["correct_products"] == 10
    assert cv2.imread(str(out / "demo.jpg")) is not None
    assert sorted(path.name for path in (out / "overlays").iterdir())[0].startswith("0001_tote-0")
    assert "5 sent, 5 answered" in (out / "log" / "source.log").read_text()


def test_own_images_without_gallery_show_objects_without_products(
    colour_bundle: Path, scene: Scene, tmp_path: Path
) -> None:
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), scene("green")[..., ::-1])
    out = tmp_path / "out"
    done = demo("--source", str(tmp_path), "--model", str(colour_bundle), "--out", str(out), "--frames", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without products" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["frames"]["received"], summary["objects"]["with_product"]) == (2, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_source_totes_are_synthesised(colour_bundle: Path, tmp_path: Path) -> None:
    done = demo("--model", str(colour_bundle), "--out", str(tmp_path), "--frames", "20", timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["frames"]["received"] == 20
    assert summary["image_sizes"] == ["640x512"]
    assert summary["products_against_truth"]["annotated_objects"] > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{tmp}/none"], "is not a folder"),
        (["--model", "{bundle}", "--source", "{tmp}/none"], "does not exist"),
        (["--model", "{bundle}", "--source", "{tmp}"], "holds no images"),
    ],
)
def test_what_cannot_work_says_why(
    colour_bundle: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.format(tmp=tmp_path, bundle=colour_bundle) for argument in arguments]
    failed = demo(*filled, "--out", str(tmp_path / "out"))
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_gallery_that_cannot_be_used_is_named(colour_bundle: Path, scene: Scene, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.jpg"), scene("green"))
    (tmp_path / "bad.gallery").write_text("no gallery")
    failed = demo(
        "--source",
        str(tmp_path),
        "--model",
        str(colour_bundle),
        "--gallery",
        str(tmp_path / "bad.gallery"),
        "--out",
        str(tmp_path / "out"),
    )
    assert failed.returncode == 2
    assert "bad.gallery" in failed.stderr


def test_a_process_that_fails_on_the_way_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with ProcessGroup() as group:
        group.start(armbench({"source": "/does/not/exist", "model": "/nowhere", "viewer": "true"}))
        ended = group.wait(60)
        with pytest.raises(
            DemoFailure, match=r"(?s)'source' ended with code 2.*does not exist.*'perception'"
        ):
            check_end(ended, group, tmp_path)


def test_the_demo_keeps_to_a_domain_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    assert private_environment(tmp_path)["ROS_DOMAIN_ID"] == "7"
    monkeypatch.delenv("ROS_DOMAIN_ID")
    chosen = private_environment(tmp_path)
    assert 1 <= int(chosen["ROS_DOMAIN_ID"]) <= 101
    assert chosen["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_DOMAIN_ID" not in os.environ


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 3, 2), (30, 3, 3)])
def test_contact_sheets_hold_up_to_nine_pictures(tmp_path: Path, count: int, columns: int, rows: int) -> None:
    pictures = [tmp_path / f"{i:02d}.png" for i in range(count)]
    for path in pictures:
        cv2.imwrite(str(path), np.zeros((100, 140, 3), np.uint8))
    assert write_contact_sheet(pictures, tmp_path / "sheet.jpg")
    sheet = cv2.imread(str(tmp_path / "sheet.jpg"))
    assert sheet is not None
    assert sheet.shape == (rows * 406 + 6, columns * 566 + 6, 3)
    assert not write_contact_sheet([], tmp_path / "none.jpg")
