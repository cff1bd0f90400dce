"""Small data sets in ARMBench's layouts, drawn in the colours that the colour bundle finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.support.bundles import BACKGROUND, PALETTE, draw_tote, reference_photo

SIZE = (256, 320)
_CELLS = [(x, y) for y in (0.04, 0.52) for x in (0.03, 0.36, 0.69)]


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image; PNG keeps it exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))


def write_tote_set(
    root: Path, count: int = 6, *, subset: str = "mix-object-tote", split: str = "test", hidden: int = 0
) -> list[dict[str, Any]]:
    """Write totes of 1 to 6 colour rectangles, with an annotation of the tote itself.

    Args:
        root: folder of the data set.
        count: number of images.
        subset: folder below it.
        split: name of the annotation file.
        hidden: in so many images, one annotated object is not drawn: it cannot be found.

    Returns:
        The annotations of objects.
    """
    rng = np.random.default_rng(0)
    folder = root / subset
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "Object"}, {"id": 2, "name": "Tote"}],
    }
    height, width = SIZE
    for number in range(1, count + 1):
        names = list(rng.permutation(list(PALETTE)))[: 1 + (number - 1) % 6]
        rectangles = {}
        for name, (x, y) in zip(names, _CELLS, strict=False):
            w, h = rng.uniform([0.18, 0.26], [0.27, 0.42])
            rectangles[str(name)] = (x, y, x + w, y + h)
        drawn = dict(list(rectangles.items())[1:]) if number <= hidden else rectangles
        write_image(folder / "images" / f"{number:03d}.png", draw_tote(SIZE, drawn)[0])
        document["images"].append(
            {"id": number, "file_name": f"{number:03d}.png", "height": height, "width": width}
        )
        _annotate(document, number, 2, (0, 0, 1, 1), None)
        for name, rectangle in rectangles.items():
            _annotate(document, number, 1, rectangle, name)
    (folder / f"{split}.json").write_text(json.dumps(document))
    return [a for a in document["annotations"] if a["category_id"] == 1]


def _annotate(
    document: dict[str, Any], image: int, category: int, rectangle: tuple[float, ...], product: str | None
) -> None:
    height, width = SIZE
    x1, x2 = round(rectangle[0] * width), round(rectangle[2] * width)
    y1, y2 = round(rectangle[1] * height), round(rectangle[3] * height)
    document["annotations"].append(
        {
            "id": len(document["annotations"]) + 1,
            "image_id": image,
            "category_id": category,
            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "product_id": product,
        }
    )


def write_reference_images(root: Path, per_product: int = 2) -> None:
    """Write `Reference_Images/<colour>/<n>.png` for every colour."""
    for name in PALETTE:
        for number in range(1, per_product + 1):
            photo = reference_photo(name, 50 + 7 * number)
            write_image(root / "Reference_Images" / name / f"{number}.png", photo)


def write_pick_set(root: Path, count: int = 8, *, wrong: int = 0) -> None:
    """Write picks of coloured discs, each in a container of three products; the first is the truth.

    Args:
        root: folder of the data set.
        count: number of picks, all in the split `testset`.
        wrong: in so many picks another product of the container was drawn.
    """
    write_reference_images(root)
    rng = np.random.default_rng(1)
    names = []
    for number in range(count):
        products = [str(name) for name in rng.permutation(list(PALETTE))[:3]]
        shown = products[1] if number < wrong else products[0]
        folder = root / "Picks" / f"{number:04d}"
        names.append(folder.name)
        polygons = {}
        for view in ("PickRGB", "ToteWallRGB", "OnArmLowRGB"):
            image = np.full((120, 150, 3), BACKGROUND, np.uint8)
            image[:, :60] = PALETTE[products[2]]  # clutter that only the outline keeps away
            cv2.circle(image, (90, 60), 30, PALETTE[shown], -1)
            write_image(folder / f"{view}.jpg", image)
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            outline = np.stack([90.5 + 30 * np.cos(angles), 60.5 + 30 * np.sin(angles)], axis=1)
            polygons[view] = [outline.tolist()]
        (folder / "container.json").write_text(json.dumps({product: {} for product in sorted(products)}))
        (folder / "annotation.json").write_text(json.dumps({"GT_ID": products[0], "polygons": polygons}))
    (root / "train-test-split.json").write_text(json.dumps({"trainset": [], "testset": names}))
