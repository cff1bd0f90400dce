"""What `mca eval bag` writes: detections.json, frames.json, metrics.json."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mca_perception.cli import reports
from mca_perception.errors import DatasetError

if TYPE_CHECKING:
    from mca_perception.ros.bag_evaluation import BagRun

__all__ = ["label_metrics", "write_bag_run"]

_MAX_LABEL_BYTES = 1 << 30
_FIGURES = ("map", "map50", "map75")


def write_bag_run(run: BagRun, out: Path, metrics: dict[str, Any]) -> None:
    """Write the files; the same recording and model give the same detections.json and frames.json."""
    reports.write_json_array(out / "detections.json", run.detections)
    reports.write_json_array(out / "frames.json", run.frames)
    reports.write_json(out / "metrics.json", metrics)


def label_metrics(run: BagRun, labels: Path) -> dict[str, Any]:
    """Average precision of masks and boxes by pycocotools, over the labelled frames.

    Args:
        run: what was found.
        labels: COCO file; its images name their frame by ``stamp_ns``, else their ``id`` is the frame's number.

    Raises:
        DatasetError: the file is no COCO file, or none of its images is in the recording.
    """
    content = _read(labels)
    by_stamp = {frame["stamp_ns"]: frame["frame"] for frame in run.frames}
    known = {frame["frame"] for frame in run.frames}
    numbers = {
        image["id"]: by_stamp.get(image["stamp_ns"], -1) if "stamp_ns" in image else image["id"]
        for image in content["images"]
    }
    numbers = {image: frame for image, frame in numbers.items() if frame in known}
    if not numbers:
        raise DatasetError(
            f"none of the {len(content['images'])} images of {labels} is in the recording; give each its stamp_ns, "
            "or as id the number of its frame from 0 on"
        )
    sizes = {frame["frame"]: {side: frame[side] for side in ("height", "width")} for frame in run.frames}
    frames = {frame: image for image, frame in numbers.items()}
    truth = {
        "images": [{"id": image, **sizes[frame]} for image, frame in numbers.items()],
        "annotations": [entry for entry in content["annotations"] if entry["image_id"] in numbers],
        "categories": content["categories"],
    }
    found = [
        {**entry, "image_id": frames[entry["image_id"]]}
        for entry in run.detections
        if entry["image_id"] in frames
    ]
    figures: dict[str, Any] = {"labelled_frames": len(numbers), "labelled_objects": len(truth["annotations"])}
    for kind, name in (("segm", "mask"), ("bbox", "box")):
        figures |= {f"{name}_{key}": value for key, value in _average_precision(truth, found, kind).items()}
    return figures


def _average_precision(truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not found:
        return dict.fromkeys(_FIGURES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {"info": {}, **truth}
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: round(float(value), 6) for name, value in zip(_FIGURES, evaluation.stats[:3], strict=True)}


def _read(labels: Path) -> dict[str, Any]:
    try:
        if labels.stat().st_size > _MAX_LABEL_BYTES:
            raise DatasetError(f"labels {labels} are larger than {_MAX_LABEL_BYTES >> 30} GiB; split them")
        content = json.loads(labels.read_text(encoding="utf-8"))
        for key in ("images", "annotations", "categories"):
            if not all(isinstance(entry, dict) and "id" in entry for entry in content[key]):
                raise DatasetError(f"labels {labels}: {key} must be objects with an id; give a COCO file")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"labels {labels} cannot be read ({error}); give a COCO file") from error
    return dict(content)
