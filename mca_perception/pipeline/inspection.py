"""Inspection of picks with a bundle's defect graphs: from crops to logits, answers and the places that matter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.defects.crops import crop_pick
from mca_perception.defects.scores import Answer, answer, scores_of, softmax
from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.manifest import DefectOperatingPoint, DefectsSpec
from mca_perception.deploy.session import Session, open_sessions
from mca_perception.deploy.sessions.selection import AUTOMATIC
from mca_perception.errors import BundleError
from mca_perception.pipeline.preprocessing import CropFeatures, check_image, network_input

__all__ = ["GRAPHS", "DefectInspector", "Inspection"]

GRAPHS = ("backbone", "defects", "defect_views")
MAX_CROPS_AT_ONCE = 64
_HEAT_STEPS = 6


@dataclass(frozen=True)
class Inspection:
    """What the images of a pick say together.

    Attributes:
        answer: alarm, nominal, or look from another side.
        scores: probability of each defect and of any, ``combined``.
        defect: the likelier defect.
        image_scores: ``[V]`` probability of any defect, image by image.
        point: operating point of the answer; None when the bundle has none.
    """

    answer: Answer
    scores: dict[str, float]
    defect: str
    image_scores: NDArray[np.float64]
    point: DefectOperatingPoint | None


class DefectInspector:
    """Inspects picks; build it with :meth:`from_bundle`. Safe to call from several threads.

    Attributes:
        bundle: the model.
        settings: the manifest's section on defects.
    """

    def __init__(self, bundle: ModelBundle, sessions: Mapping[str, Session]) -> None:
        """Check that the bundle has what is needed.

        Raises:
            BundleError: it has no defect head, or a graph is missing.
        """
        if bundle.manifest.defects is None:
            raise BundleError(
                f"model bundle {bundle.path} has no defect head; add one with mca export --add-head, or choose another"
            )
        missing = [name for name in GRAPHS if name not in sessions]
        if missing:
            raise BundleError(f"model bundle {bundle.path} has no graph {missing[0]!r}; export it again")
        self.bundle = bundle
        self.settings: DefectsSpec = bundle.manifest.defects
        self._sessions = sessions
        self._inputs = [tensor.name for tensor in bundle.manifest.graphs["defects"].inputs]

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        session: str | Mapping[str, Session] = AUTOMATIC,
        providers: Sequence[str] | None = None,
    ) -> DefectInspector:
        """Open a bundle in a back end; ``session`` may also be the sessions of a pipeline, to share them."""
        bundle = ModelBundle.open(path)
        if isinstance(session, str):
            session = open_sessions(bundle, graphs=GRAPHS, session=session, providers=providers)
        return cls(bundle, session)

    def crop(self, image: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """Cut out what was picked; the whole image without a mask. uint8 ``[S, S, 3]``."""
        usable = mask if mask is not None and mask.any() else None
        return crop_pick(check_image(image), usable, self.settings)

    def judge_crops(self, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits ``[N, 3]`` and evidence ``[N, H]`` of crops ``[N, S, S, 3]`` uint8."""
        logits, evidence = [], []
        preprocessing = self.bundle.manifest.preprocessing
        for start in range(0, len(crops), MAX_CROPS_AT_ONCE):
            part = crops[start : start + MAX_CROPS_AT_ONCE]
            images = network_input(part, preprocessing)
            features = self._sessions["backbone"].run({"images": images})["features"]
            found = self.judge_features(CropFeatures(images, features))
            logits.append(found[0])
            evidence.append(found[1])
        return np.concatenate(logits), np.concatenate(evidence)

    def judge_features(self, part: CropFeatures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and evidence of crops whose backbone features another head needed already."""
        inputs = {"features": part.features, "images": part.images}
        found = self._sessions["defects"].run({name: inputs[name] for name in self._inputs})
        return found["logits"], found["evidence"]

    def probabilities(self, parts: Sequence[CropFeatures]) -> NDArray[np.float32]:
        """Calibrated probabilities ``[N, 3]`` of nominal and the defects for single crops, in parts."""
        rows = [np.zeros((0, len(self.settings.labels)), np.float32)]
        rows += [
            softmax(self.judge_features(part)[0], self.temperature("image")).astype(np.float32)
            for part in parts
        ]
        return np.concatenate(rows)

    def judge_views(self, evidence: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Logits ``[P, 3]`` of picks from the evidence ``[V, H]`` of the images of each; V may differ."""
        longest = max(len(rows) for rows in evidence)
        padded = np.zeros((len(evidence), longest, evidence[0].shape[1]), np.float32)
        present = np.zeros((len(evidence), longest), np.bool_)
        for number, rows in enumerate(evidence):
            padded[number, : len(rows)], present[number, : len(rows)] = rows, True
        found = self._sessions["defect_views"].run({"evidence": padded, "present": present})
        return np.asarray(found["logits"])

    def view_probabilities(self, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Calibrated probabilities of the views of one pick, one by one ``[V, 3]`` and together ``[3]``."""
        logits, evidence = self.judge_crops(crops)
        pick = softmax(self.judge_views([evidence]), self.temperature("pick"))
        return softmax(logits, self.temperature("image")).astype(np.float32), pick[0].astype(np.float32)

    def temperature(self, unit: str) -> float:
        """Temperature of a unit's logits; 1 before calibration."""
        return self.settings.temperature.get(unit, 1.0)

    def point(
        self, unit: str, fpr: float | None = None, score: str = "combined"
    ) -> DefectOperatingPoint | None:
        """The operating point for a false-positive rate, the strictest by default; None before calibration.

        Raises:
            BundleError: the bundle is calibrated, but not for that rate.
        """
        points = self.settings.points(unit, score)
        if not points or fpr is None:
            return points[0] if points else None
        for point in points:
            if abs(point.fpr - fpr) < 1e-9:
                return point
        known = ", ".join(f"{point.fpr:g}" for point in points)
        raise BundleError(
            f"{self.bundle.path} is calibrated for the false-positive rates {known}, not {fpr:g}; choose one of them "
            "or run mca calibrate thresholds"
        )

    def inspect(
        self, crops: NDArray[np.uint8], *, fpr: float | None = None, last_view: bool = False
    ) -> Inspection:
        """Judge the images of one pick together.

        Args:
            crops: ``[V, S, S, 3]`` uint8, at least one.
            fpr: false-positive rate of one of the bundle's operating points; the strictest by default.
            last_view: there are no more views, so that no other one can be asked for.

        Raises:
            BundleError: the bundle has no operating point, or none for that rate.
        """
        point = self.point("pick", fpr)
        if point is None:
            raise BundleError(f"{self.bundle.path} has no threshold for picks; run mca calibrate thresholds")
        logits, evidence = self.judge_crops(crops)
        pick = scores_of(self.judge_views([evidence]), self.temperature("pick"))
        scores = {name: float(values[0]) for name, values in pick.items()}
        clear = self.settings.clear_below.get("pick")
        return Inspection(
            answer(scores["combined"], point.threshold, clear, last_view=last_view),
            scores,
            max(self.settings.labels[1:], key=lambda name: scores[name]),
            scores_of(logits, self.temperature("image"))["combined"],
            point,
        )

    def heat_map(self, crop: NDArray[np.uint8], score: str = "combined") -> NDArray[np.float32]:
        """Where the evidence for a defect lies: how much the score falls when a window is greyed out.

        Occlusion sensitivity (Zeiler and Fergus 2014) needs no gradients and no second model: all windows go through
        the bundle's own graphs in one batch. A window is a third of the crop wide and moves by a sixth.

        Args:
            crop: ``[S, S, 3]`` uint8.
            score: which probability.

        Returns:
            ``[S, S]`` float32 0..1; all 0 where nothing lowers the score.
        """
        size = crop.shape[0]
        window, steps = size // 3, _HEAT_STEPS
        starts = np.linspace(0, size - window, steps).round().astype(int)
        places = [(y, x) for y in starts for x in starts]
        batch = np.repeat(crop[None], len(places) + 1, axis=0)
        for number, (y, x) in enumerate(places):
            batch[number, y : y + window, x : x + window] = self.settings.background
        logits = self.judge_crops(batch)[0]
        # On the scale of the log-odds a saturated probability still shows which window carries it.
        odds = _log_odds(scores_of(logits, self.temperature("image"))[score])
        fall = np.maximum(odds[-1] - odds[:-1], 0)
        heat, count = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
        for (y, x), value in zip(places, fall, strict=True):
            heat[y : y + window, x : x + window] += np.float32(value)
            count[y : y + window, x : x + window] += 1
        heat /= np.maximum(count, 1)
        heat = np.asarray(cv2.GaussianBlur(heat, (0, 0), size / 16), np.float32)
        return heat / heat.max() if heat.max() > 1e-6 else np.zeros_like(heat)


def _log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(probability, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))
