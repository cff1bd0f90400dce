"""Categorises posts with a model bundle, in ONNX Runtime; needs no torch.

A post with only what the model cannot read is refused; one where a part could not be read is categorised by the rest,
and its report says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.bundle import CrisisBundle
from mca_perception.crisis.features import MAX_CHARACTERS, FeatureBatch, NgramFeatures, normalise_text
from mca_perception.crisis.images import image_warnings
from mca_perception.crisis.posts import CrisisReport, LabelScore, Post, priority_level
from mca_perception.datasets.crisismmd import TASKS, CrisisSplit, LabelledPost
from mca_perception.deploy.session import OnnxSession
from mca_perception.errors import BundleError, DatasetError, PostError

__all__ = ["MAX_BATCH", "CrisisClassifier"]

MAX_BATCH = 256
"""Posts that go through the graphs at once; longer sequences are split."""
FEATURE_INPUTS = frozenset({"feature_ids", "feature_counts"})


class CrisisClassifier:
    """A model bundle at work; may be called from several threads.

    Attributes:
        bundle: the bundle.
        labels: its labels and thresholds.
        model: ``name@fingerprint``, as in every report.
    """

    def __init__(self, bundle: CrisisBundle, *, threads: int | None = None) -> None:
        """Load the graphs of an opened bundle.

        Args:
            bundle: the bundle.
            threads: of one operator in ONNX Runtime; by default one per core.

        Raises:
            BundleError: a graph is missing, cannot be loaded or takes other inputs, or the label file is not valid.
        """
        self.bundle = bundle
        self.labels = bundle.labels()
        self.model = f"{bundle.manifest.name}@{bundle.fingerprint}"
        self._features = NgramFeatures(bundle.manifest.text.features)
        self._sessions = {task: OnnxSession(bundle.path_of(task), intra_op_threads=threads) for task in TASKS}
        for task, session in self._sessions.items():
            if set(session.input_names) != FEATURE_INPUTS:
                raise BundleError(
                    f"{bundle.path}: graph {task} takes {', '.join(session.input_names)}, not "
                    f"{' and '.join(sorted(FEATURE_INPUTS))}; export the bundle again"
                )
        self._priorities = np.array([self.labels.priority_of[name] for name in self.labels.humanitarian])
        self._check_widths()

    @classmethod
    def from_bundle(cls, path: str | os.PathLike[str], *, threads: int | None = None) -> CrisisClassifier:
        """Open a bundle and load it; arguments and errors as above."""
        return cls(CrisisBundle.open(path), threads=threads)

    def probabilities(self, texts: Sequence[str], task: str) -> NDArray[np.float32]:
        """Probabilities ``[N, C]`` of one task, in the order of its labels.

        Raises:
            DatasetError: there is no such task.
        """
        if task not in self._sessions:
            raise DatasetError(f"the model has no task {task!r}; choose {' or '.join(self._sessions)}")
        parts = [np.zeros((0, len(self.labels.labels_of(task))), np.float32)]
        for start in range(0, len(texts), MAX_BATCH):
            features = self._features.batch(texts[start : start + MAX_BATCH])
            parts.append(self._run(task, features))
        return np.concatenate(parts)

    def predict(self, posts: Sequence[LabelledPost], split: CrisisSplit) -> NDArray[np.float32]:
        """Probabilities ``[N, C]`` of rows of a data set, in the order of the split's labels.

        Raises:
            BundleError: the bundle has other labels for that task.
        """
        if self.labels.labels_of(split.task) != split.label_names:
            raise BundleError(
                f"{self.bundle.path} has other labels for {split.task} than the data; take one trained on CrisisMMD"
            )
        return self.probabilities([post.text for post in posts], split.task)

    def classify(self, posts: Sequence[Post]) -> list[CrisisReport | PostError]:
        """Categorise posts together; one that cannot be is answered by its error and does not disturb the others.

        Returns:
            One entry per post, in order.
        """
        answers: list[CrisisReport | PostError] = [self._refusal(post) for post in posts]
        usable = [i for i, post in enumerate(posts) if post.text.strip()]
        for start in range(0, len(usable), MAX_BATCH):
            rows = usable[start : start + MAX_BATCH]
            started = time.perf_counter()
            features = self._features.batch([posts[i].text for i in rows])
            informative, humanitarian = (self._run(task, features) for task in TASKS)
            model_ms = (time.perf_counter() - started) * 1000 / len(rows)
            for row, i in enumerate(rows):
                answers[i] = self._report(posts[i], informative[row], humanitarian[row], model_ms)
        return answers

    def _run(self, task: str, features: FeatureBatch) -> NDArray[np.float32]:
        inputs: dict[str, NDArray[Any]] = {"feature_ids": features.ids, "feature_counts": features.counts}
        return np.asarray(self._sessions[task].run(inputs)["probabilities"], np.float32)

    def _check_widths(self) -> None:
        for task in TASKS:
            width, names = self.probabilities([""], task).shape[1], self.labels.labels_of(task)
            if width != len(names):
                raise BundleError(
                    f"{self.bundle.path}: graph {task} has {width} outputs for {len(names)} labels; "
                    "export the bundle again"
                )

    def _refusal(self, post: Post) -> PostError:
        if post.images:
            return PostError(
                f"the post has images only, and {self.model} reads text: add the text, or take a model for images"
            )
        return PostError("the post is empty: give a text, or an image for a model that reads images")

    def _report(
        self,
        post: Post,
        informative: NDArray[np.float32],
        humanitarian: NDArray[np.float32],
        model_ms: float,
    ) -> CrisisReport:
        score = float(np.clip(humanitarian @ self._priorities, 0, 1))
        names = self.labels.humanitarian
        return CrisisReport(
            post_id=post.post_id,
            event_id=post.event_id,
            informative=_best(self.labels.informative, informative),
            humanitarian=_best(names, humanitarian),
            humanitarian_scores={name: float(p) for name, p in zip(names, humanitarian, strict=True)},
            priority_score=score,
            priority_level=priority_level(score),
            alert=score >= self.labels.alert_threshold,
            uncalibrated=True,
            modalities_used=("text",),
            modal_agreement=None,
            warnings=tuple(self._warnings(post)),
            model=self.model,
            label_version=self.labels.version,
            model_ms=model_ms,
        )

    def _warnings(self, post: Post) -> list[str]:
        warnings = []
        if len(post.text) > MAX_CHARACTERS:
            warnings.append(
                f"text: only the first {MAX_CHARACTERS:,} of {len(post.text):,} characters counted"
            )
        if not normalise_text(post.text[:MAX_CHARACTERS]):
            warnings.append("text: nothing but links in it; the answer is that for any such post")
        if post.images:
            warnings.append(f"images: {len(post.images)} did not count, {self.model} reads text only")
            warnings += image_warnings(post.images)
        return warnings


def _best(names: Sequence[str], probabilities: NDArray[np.float32]) -> LabelScore:
    index = int(probabilities.argmax())
    return LabelScore(names[index], float(probabilities[index]))
