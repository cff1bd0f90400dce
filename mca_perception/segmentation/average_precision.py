"""Average precision by pycocotools: every image is matched once, and accumulated over any choice of images.

The matching of an image does not depend on other images, so what ``COCOeval.evaluate`` finds is kept and
``COCOeval.accumulate`` is called on parts of it: on the images of a bin, or on a bootstrap resample.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AREA_UNIT",
    "EVERY_SIZE",
    "MAX_DETECTIONS",
    "Curves",
    "Evaluations",
    "Progress",
    "bootstrap_ap50",
    "evaluate_in_parts",
]

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a sequence to show how far a loop over it is."""
Kind = Literal["segm", "bbox"]
Ranges = Mapping[str, tuple[float, float]]

MAX_DETECTIONS = 100
AREA_UNIT = 1e6
"""Areas are millionths of the image, because image sizes differ within one set."""
EVERY_SIZE: Ranges = {"all": (0.0, 1e10)}
BOOTSTRAP_SAMPLES = 300

# Images that pycocotools holds at once: its own records of an image are some 10 times what is kept of them.
_IMAGES_AT_ONCE = 200
_KEPT = ("dtScores", "dtMatches", "dtIgnore", "gtIgnore")


@dataclass(frozen=True)
class Curves:
    """Precision over recall.

    Attributes:
        precision: ``[T, R, K]`` by IoU threshold, recall level and category; -1 where nothing is to be found.
        scores: ``[T, R, K]``, score at which that recall is reached, 0 where it is not.
        thresholds: ``[T]`` IoU thresholds.
        recall: ``[R]`` recall levels.
        categories: ``K`` category ids.
    """

    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    recall: NDArray[np.float64]
    categories: tuple[int, ...]

    def average(self, iou: float | None = None, categories: Sequence[int] | None = None) -> float | None:
        """Mean precision over recall levels and categories, as ``COCOeval.summarize`` forms it.

        Args:
            iou: one threshold; all thresholds when not given.
            categories: all when not given.

        Returns:
            ``None`` when none of the categories has anything to find.
        """
        precision = self.precision if iou is None else self.precision[np.isclose(self.thresholds, iou)]
        if categories is not None:
            precision = precision[..., [c in categories for c in self.categories]]
        known = precision[precision > -1]
        return float(known.mean()) if known.size else None


class Evaluations:
    """What pycocotools found in every image, by category and range of areas.

    Attributes:
        images: image ids in ascending order.
        categories: category ids in ascending order.
        thresholds: IoU thresholds.
    """

    def __init__(
        self,
        kind: Kind,
        images: Sequence[int],
        categories: Sequence[int],
        ranges: Ranges,
        thresholds: NDArray[Any],
    ) -> None:
        self.images = tuple(images)
        self.categories = tuple(categories)
        self.thresholds = thresholds
        self._kind = kind
        self._ranges = ranges
        self._entries: dict[tuple[int, str], list[dict[str, Any] | None]] = {
            (category, size): [] for category in categories for size in ranges
        }

    @classmethod
    def of(
        cls,
        truth: dict[str, Any],
        detections: Sequence[dict[str, Any]],
        kind: Kind,
        *,
        ranges: Ranges = EVERY_SIZE,
        progress: Progress = lambda items, _: items,
    ) -> Evaluations:
        """Match the detections of every image with its annotations.

        Args:
            truth: COCO document.
            detections: COCO results of its images.
            kind: compare masks (``segm``) or boxes (``bbox``).
            ranges: areas ``(low, high)`` in millionths of the image by name.
            progress: shows how far it is.
        """
        categories = sorted({category["id"] for category in truth["categories"]})
        images = sorted(image["id"] for image in truth["images"])
        result: Evaluations | None = None
        for part in evaluate_in_parts(truth, detections, kind, ranges=ranges, progress=progress):
            result = result or cls(kind, images, categories, ranges, part.params.iouThrs)
            result._keep(part)
        return result or cls(kind, images, categories, ranges, np.zeros(0))

    def curves(self, images: Iterable[int] | None = None, *, size: str = "all") -> Curves:
        """Accumulate over images given by their places in :attr:`images`, which may repeat; all by default."""
        from pycocotools.cocoeval import COCOeval

        places = range(len(self.images)) if images is None else list(images)
        accumulator = COCOeval(iouType=self._kind)
        parameters = accumulator.params
        parameters.imgIds = list(range(len(places)))
        parameters.catIds = list(self.categories)
        parameters.areaRng, parameters.areaRngLbl = [list(self._ranges[size])], [size]
        parameters.maxDets = [MAX_DETECTIONS]
        parameters.iouThrs = self.thresholds
        accumulator._paramsEval = parameters
        accumulator.evalImgs = [self._entries[c, size][place] for c in self.categories for place in places]
        with contextlib.redirect_stdout(io.StringIO()):
            accumulator.accumulate()
        found = accumulator.eval
        return Curves(
            found["precision"][..., 0, 0],
            found["scores"][..., 0, 0],
            self.thresholds,
            parameters.recThrs,
            self.categories,
        )

    def at(self, iou: float) -> Evaluations:
        """The same at one IoU threshold and without ranges of areas, which accumulates much faster."""
        chosen = np.isclose(self.thresholds, iou)
        single = Evaluations(self._kind, self.images, self.categories, EVERY_SIZE, self.thresholds[chosen])
        for category in self.categories:
            single._entries[category, "all"] = [
                entry and {name: v[chosen] if v.ndim == 2 else v for name, v in entry.items()}
                for entry in self._entries[category, "all"]
            ]
        return single

    def ranked(self, iou: float, categories: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
        """Scores and hits of all detections that count at an IoU threshold, and how many objects there are."""
        single = self.at(iou)
        entries = [e for c in categories for e in single._entries[c, "all"] if e is not None]
        empty = np.zeros(0)
        counted = [~e["dtIgnore"][0] for e in entries]
        scores = [e["dtScores"][keep] for e, keep in zip(entries, counted, strict=True)]
        hits = [e["dtMatches"][0][keep] for e, keep in zip(entries, counted, strict=True)]
        wanted = sum(int((~e["gtIgnore"]).sum()) for e in entries)
        return np.concatenate([empty, *scores]), np.concatenate([empty, *hits]).astype(bool), wanted

    def _keep(self, part: Any) -> None:
        found = iter(part.evalImgs)  # by category, then range, then image
        for category in part.params.catIds:
            for size in self._ranges:
                self._entries[category, size] += [_slim(next(found)) for _ in part.params.imgIds]


def evaluate_in_parts(
    truth: dict[str, Any],
    detections: Iterable[dict[str, Any]],
    kind: Kind,
    *,
    ranges: Ranges = EVERY_SIZE,
    iou: float | None = None,
    progress: Progress = lambda items, _: items,
) -> Iterator[Any]:
    """Run ``COCOeval.evaluate`` on some images at a time, so that its own records stay small.

    Args:
        truth: COCO document.
        detections: COCO results of its images, or their overlap with nothing.
        kind: compare masks (``segm``) or boxes (``bbox``).
        ranges: areas ``(low, high)`` in millionths of the image by name.
        iou: one IoU threshold; COCO's ten when not given.
        progress: shows how far it is.

    Yields:
        A ``COCOeval`` after ``evaluate``; together they cover all images in ascending order of their ids.
    """
    from pycocotools.cocoeval import COCOeval

    images = sorted(truth["images"], key=lambda image: image["id"])
    parts = [images[start : start + _IMAGES_AT_ONCE] for start in range(0, len(images), _IMAGES_AT_ONCE)]
    annotated, found = _by_image(truth["annotations"]), _by_image(detections)
    for part in progress(parts, "comparing masks" if kind == "segm" else "comparing boxes"):
        ground = _indexed(part, annotated, truth["categories"])
        evaluation = COCOeval(ground, _indexed(part, found, truth["categories"]), kind)
        parameters = evaluation.params
        parameters.catIds = sorted({category["id"] for category in truth["categories"]})
        parameters.maxDets = [MAX_DETECTIONS]
        parameters.areaRng, parameters.areaRngLbl = [list(limits) for limits in ranges.values()], list(ranges)
        if iou is not None:
            parameters.iouThrs = np.array([iou])
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        yield evaluation


def bootstrap_ap50(evaluations: Evaluations, *, samples: int, seed: int) -> NDArray[np.float64]:
    """Average precision at IoU 0.5 on resamples of the images, drawn with replacement.

    Args:
        evaluations: of masks or boxes.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        ``[samples, K]`` by category; NaN where a resample has nothing of a category.
    """
    rng = np.random.default_rng(seed)
    single = evaluations.at(0.5)
    count = len(single.images)
    drawn = [single.curves(rng.integers(0, count, count)).precision[0] for _ in range(samples)]
    precision = np.array(drawn).reshape(samples, -1, len(single.categories)).mean(axis=1)
    precision[precision < 0] = np.nan
    return precision


def _by_image(entries: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _indexed(images: Sequence[dict[str, Any]], by_image: Mapping[int, list[Any]], categories: Any) -> Any:
    """Make a COCO object of annotations or results, numbered from 1, with areas relative to their images."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image in images:
        unit = AREA_UNIT / (image["height"] * image["width"])
        for entry in by_image.get(image["id"], ()):
            area = entry["area"] if "area" in entry else float(coco_mask.area(entry["segmentation"]))
            number = len(annotations) + 1  # pycocotools takes a match with id 0 for none
            annotations.append({"iscrowd": 0, **entry, "id": number, "area": area * unit})
    coco = COCO()
    coco.dataset = {"images": list(images), "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _slim(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """What accumulation reads of an image, in small types."""
    if entry is None:
        return None
    slim = {name: np.asarray(entry[name]) for name in _KEPT}
    return {name: v if name == "dtScores" else v.astype(bool) for name, v in slim.items()}
