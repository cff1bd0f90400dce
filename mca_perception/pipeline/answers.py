"""From rankings of products to answers: a product with its confidence, or "none of these"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.manifest import IdentificationCalibration, IdentificationSpec
from mca_perception.identification.confidence import CANDIDATES, confidences
from mca_perception.identification.gallery import Gallery
from mca_perception.identification.gallery_search import Ranking

__all__ = ["Answer", "look_up"]


@dataclass(frozen=True)
class Answer:
    """Which product an object or a pick is.

    Attributes:
        products: ids, best first; empty when none is similar enough, or none was searched.
        scores: their cosine similarities.
        confidence: probability that the first product is right, if it is among those searched; NaN without products
            and for models that are not calibrated.
    """

    products: tuple[str, ...]
    scores: tuple[float, ...]
    confidence: float


def look_up(
    gallery: Gallery,
    queries: Sequence[NDArray[np.float32]],
    settings: IdentificationSpec,
    *,
    top_k: int,
    manifest: Iterable[str] | None = None,
    views: int = 1,
    reject_unknown: bool = True,
) -> list[Answer]:
    """Look queries up in a gallery and judge what is found by the model's calibration, if it has one.

    Args:
        gallery: the products.
        queries: float32 ``[V, E]`` each; the similarity of a product is the largest of any of the V.
        settings: of the model that made them.
        top_k: products per answer.
        manifest: products to search; all when None.
        views: images behind each query; the calibration differs.
        reject_unknown: answer with no product when even the best is below the calibrated threshold.
    """
    calibration = settings.calibration_for(views, within_manifest=manifest is not None)
    wanted = top_k if calibration is None else max(top_k, CANDIDATES)
    if not queries:
        return []
    rankings = iter(gallery.search(np.concatenate(queries), wanted, manifest))
    merged = [_best_view([next(rankings) for _ in query], wanted) for query in queries]
    return [_judge(ranking, calibration, top_k, reject_unknown) for ranking in merged]


def _best_view(rankings: list[Ranking], count: int) -> Ranking:
    """One ranking of the views of a query, each product with its largest similarity."""
    if len(rankings) == 1:
        return rankings[0]
    best: dict[str, float] = {}
    for product, score in (entry for ranking in rankings for entry in ranking):
        best[product] = max(score, best.get(product, score))
    return sorted(best.items(), key=lambda entry: -entry[1])[:count]


def _judge(
    ranking: Ranking,
    calibration: IdentificationCalibration | None,
    top_k: int,
    reject_unknown: bool,
) -> Answer:
    if not ranking:
        return Answer((), (), float("nan"))
    confidence = float("nan")
    if calibration is not None:
        if reject_unknown and ranking[0][1] <= calibration.threshold:
            return Answer((), (), float("nan"))
        similarities = np.array([score for _, score in ranking], dtype=np.float32)
        confidence = float(confidences([similarities], calibration.temperature)[0])
    products, scores = zip(*ranking[:top_k], strict=True)
    return Answer(tuple(products), tuple(scores), confidence)
