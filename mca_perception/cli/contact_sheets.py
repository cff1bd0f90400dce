"""Pictures of the worst and of ordinary cases, to look at beside the figures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.armbench import IdentificationIndex, Pick
from mca_perception.datasets.coco import ImageRecord, rasterise
from mca_perception.datasets.images import read_rgb
from mca_perception.identification.evaluation import Ranked
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.evaluation import SegmentationRun
from mca_perception.pipeline.identification_evaluation import pick_crops

__all__ = ["captioned", "grid", "identification_sheet", "segmentation_sheet", "write_image"]

Image = NDArray[np.uint8]

TILE_WIDTH = 420
CAPTION_HEIGHT = 22
GAP = 6
TILE_GAP = 24
# Masks that cover more than this share of an image, such as the tote's, would hide what lies in them.
_OUTLINED_ONLY = 0.5
_INK = (25, 25, 25)


def segmentation_sheet(run: SegmentationRun, path: Path, *, worst: int = 24) -> None:
    """Write a picture of the images with the lowest panoptic quality, worst first: truth left, model right."""
    records = {record.image_id: record for record in run.records}
    found: dict[int, list[dict[str, Any]]] = {}
    for detection in run.published:
        found.setdefault(detection["image_id"], []).append(detection)
    shown = set(run.metrics["operating_point"]["categories"])
    tiles = []
    for score in sorted(run.scores, key=lambda score: score.quality)[:worst]:
        outcome = f"quality {score.quality:.2f}: {score.true_positives} found, "
        outcome += f"{score.false_negatives} missed, {score.false_positives} false"
        record = records[score.image_id]
        tiles.append(_segmentation_tile(record, found.get(score.image_id, []), shown, outcome))
    write_image(path, grid(tiles, columns=1 if len(tiles) < 3 else 3))


def identification_sheet(
    pipeline: PerceptionPipeline,
    index: IdentificationIndex,
    ranked: Sequence[Ranked],
    path: Path,
    *,
    count: int = 12,
    views: int = 1,
) -> None:
    """Write a picture of the clearest mistakes, then of the narrowest hits: query, truth, first answer."""
    picks = {pick.id: pick for pick in index.picks}
    answered = [r for r in ranked if r.best is not None and r.truth_similarity is not None]
    ordered = sorted(answered, key=lambda r: -r.margin)[:count]
    tiles = [_identification_tile(pipeline, index, picks[r.query.id], r, views) for r in ordered]
    if tiles:
        write_image(path, grid(tiles, columns=3))


def _segmentation_tile(
    record: ImageRecord, detections: list[dict[str, Any]], shown: set[str], outcome: str
) -> Image:
    from pycocotools import mask as coco_mask

    image = record.read()
    objects = [a for a in record.annotations if a.category in shown and not a.is_crowd]
    truth = [rasterise(annotation, record.height, record.width) for annotation in objects]
    predicted = [coco_mask.decode(d["segmentation"]).astype(bool) for d in detections]
    sides = ((truth, f"{record.path.name[:24]}, truth"), (predicted, f"model, {outcome}"))
    return _beside([captioned(_resized(_tinted(image, masks), TILE_WIDTH), title) for masks, title in sides])


def _identification_tile(
    pipeline: PerceptionPipeline, index: IdentificationIndex, pick: Pick, ranked: Ranked, views: int
) -> Image:
    side = TILE_WIDTH // 3
    crops = list(pick_crops(pipeline, pick, views).values())[:1]
    answer = ranked.best[0] if ranked.best else ""
    for product in (pick.product_id, answer):
        paths = index.references.get(product, [])[:1]
        crops += [pipeline.crop_reference(read_rgb(path, oriented=True)) for path in paths]
    pictures = [cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA) for crop in crops]
    outcome = f"rank {ranked.rank} of {ranked.candidates}, {ranked.truth_similarity or 0:.2f}"
    other = f"vs {answer[:14]} {ranked.best[1]:.2f}" if ranked.best and ranked.rank != 1 else ""
    row = _beside([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    return captioned(row, f"{pick.product_id[:14]} {outcome} {other}")


def _tinted(image: Image, masks: Sequence[NDArray[np.bool_]]) -> Image:
    canvas: Image = image.copy()
    line = max(1, round(max(image.shape) / 400))
    for i, mask in enumerate(masks):
        colour = _colour(i)
        if mask.sum() < _OUTLINED_ONLY * mask.size:
            canvas[mask] = (0.6 * canvas[mask] + 0.4 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, outlines, -1, colour, line, cv2.LINE_AA)
    return canvas


def _colour(i: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((i * 0.618) % 1, 0.8, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def _resized(image: Image, width: int) -> Image:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _beside(images: Sequence[Image], gap: int = GAP) -> Image:
    """Put images in a row on white."""
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    canvas = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for image in images:
        canvas[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return canvas


def captioned(image: Image, text: str) -> Image:
    """Put a line of text above an image."""
    canvas = np.full((image.shape[0] + CAPTION_HEIGHT, image.shape[1], 3), 255, np.uint8)
    canvas[CAPTION_HEIGHT:] = image
    plain = text.encode("ascii", "replace").decode()  # OpenCV's built-in fonts know little more
    cv2.putText(canvas, plain, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return canvas


def grid(tiles: Sequence[Image], columns: int) -> Image:
    """Lay tiles out in rows on white."""
    rows = [_beside(tiles[start : start + columns], TILE_GAP) for start in range(0, len(tiles), columns)]
    height = sum(row.shape[0] for row in rows) + GAP * (len(rows) - 1)
    canvas = np.full((height, max(row.shape[1] for row in rows), 3), 255, np.uint8)
    top = 0
    for row in rows:
        canvas[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0] + GAP
    return canvas


def write_image(path: Path, image: Image) -> None:
    """Write an RGB image atomically."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85] if path.suffix == ".jpg" else []
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(encoded.tobytes())
    part.replace(path)
