"""From one image to its objects: segmentation, then identification of every object, through one backbone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import IdentificationSpec, ModelBundle, SegmentationSpec
from mca_perception.deploy.session import Session, open_sessions
from mca_perception.errors import BundleError, GalleryError
from mca_perception.geometry import Letterbox
from mca_perception.identification.crops import crop_object, crop_reference, mask_box
from mca_perception.identification.gallery import Gallery
from mca_perception.objects import Objects
from mca_perception.pipeline.preprocessing import check_image, to_tensor
from mca_perception.segmentation.postprocess import Candidates, select_instances, to_objects

__all__ = ["PerceptionPipeline"]

MAX_CROPS_AT_ONCE = 64


class PerceptionPipeline:
    """Perceives the objects of an image; build it with :meth:`from_bundle`.

    Safe to call from several threads.

    Attributes:
        bundle: the model.
        gallery: where products are looked up; ``None`` leaves objects without products.
        score_threshold: objects below it are left out; as calibrated in the bundle unless set.
        top_k: products per object.

    Example:
        >>> pipeline = PerceptionPipeline.from_bundle("models/nano")  # doctest: +SKIP
        >>> objects = pipeline.perceive(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: ModelBundle,
        sessions: Mapping[str, Session],
        *,
        gallery: Gallery | None = None,
        score_threshold: float | None = None,
        top_k: int = 5,
    ) -> None:
        """Check that bundle, sessions and gallery fit together.

        Raises:
            BundleError: the bundle lacks a graph or a setting.
            GalleryError: the gallery belongs to another model.
            ValueError: ``score_threshold`` or ``top_k`` is out of range.
        """
        _check_bundle(bundle, sessions)
        _check_gallery(bundle, gallery)
        calibrated = bundle.manifest.segmentation.score_threshold if bundle.manifest.segmentation else 0.0
        threshold = calibrated if score_threshold is None else float(score_threshold)
        if not 0 <= threshold <= 1 or top_k < 1:
            raise ValueError(
                f"score_threshold {threshold} must lie in [0, 1] and top_k {top_k} be at least 1"
            )
        self.bundle = bundle
        self.gallery = gallery
        self.score_threshold = threshold
        self.top_k = top_k
        self._sessions = sessions

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        session: Mapping[str, Session] | None = None,
        gallery: Gallery | None = None,
        providers: Sequence[str] | None = None,
        score_threshold: float | None = None,
        top_k: int = 5,
    ) -> PerceptionPipeline:
        """Open a model bundle.

        Args:
            path: the bundle's folder.
            session: sessions from :func:`~mca_perception.deploy.open_sessions`, to share one backbone.
            gallery: product gallery filled with this bundle's embeddings.
            providers: ONNX Runtime execution providers, best first; only without ``session``.
            score_threshold: replaces the bundle's calibrated one.
            top_k: products per object.

        Raises:
            BundleError: the bundle is missing, altered, of another version or incomplete.
            GalleryError: the gallery belongs to another model.
        """
        bundle = ModelBundle.open(path)
        sessions = open_sessions(bundle, providers=providers) if session is None else session
        return cls(bundle, sessions, gallery=gallery, score_threshold=score_threshold, top_k=top_k)

    def perceive(self, image: NDArray[np.uint8], *, manifest: Iterable[str] | None = None) -> Objects:
        """Segment an image and identify every object in it.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            manifest: products that may be there; others are not considered. Unknown ids are ignored.

        Returns:
            The objects, best score first, in pixels of ``image``, with ``timings_ms`` of the stages
            letterbox, backbone, segmentation, postprocess, identification and total. ``embeddings`` are there
            when the bundle identifies, products when there is also a gallery.

        Raises:
            InvalidImageError: the image is not uint8 ``[H, W, 3]``, is empty, or exceeds 50 megapixels.
            BundleError: the bundle does not segment.
        """
        timings: dict[str, float] = {}
        with _timed(timings, "total"):
            candidates = self.candidates(image, timings_ms=timings)
            with _timed(timings, "postprocess"):
                objects = to_objects(candidates, self.segmentation_settings.labels)
            with _timed(timings, "identification"):
                objects = self._identify(image, objects, manifest)
        return objects.replace(timings_ms=timings)

    def candidates(
        self,
        image: NDArray[np.uint8],
        *,
        score_threshold: float | None = None,
        timings_ms: dict[str, float] | None = None,
    ) -> Candidates:
        """Segment an image up to non-maximum suppression; masks may overlap.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            score_threshold: replaces the pipeline's own for this image.
            timings_ms: receives the milliseconds of the stages.

        Raises:
            InvalidImageError: as for :meth:`perceive`.
            BundleError: the bundle does not segment.
        """
        check_image(image)
        settings = self.segmentation_settings
        timings = {} if timings_ms is None else timings_ms
        with _timed(timings, "letterbox"):
            letterbox = Letterbox.fit(image.shape[:2], settings.input_size)
            images = self._to_tensor(letterbox.apply(image)[None])
        with _timed(timings, "backbone"):
            features = self._sessions["backbone"].run({"images": images})["features"]
        with _timed(timings, "segmentation"):
            output = self._sessions["segmentation"].run({"features": features, "images": images})
        with _timed(timings, "postprocess"):
            scores, labels, logits = output["scores"][0], output["labels"][0], output["mask_logits"][0]
            if settings.mask_threshold != 0.5:
                logits = logits - np.float32(
                    math.log(settings.mask_threshold / (1 - settings.mask_threshold))
                )
            kept = select_instances(
                scores,
                labels,
                logits,
                score_threshold=self.score_threshold if score_threshold is None else score_threshold,
                nms_iou=settings.nms_iou,
                max_objects=settings.max_objects,
            )
        return Candidates(np.clip(scores[kept], 0, 1), labels[kept], logits[kept], letterbox)

    def crop(
        self,
        image: NDArray[np.uint8],
        *,
        box: NDArray[np.float32] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint8]:
        """Cut an object out of an image as the identification graph wants it.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            box: ``[4]`` xyxy in pixels of ``image``; tight around ``mask`` when not given, the whole image,
                without margin, when there is neither.
            mask: bool ``[H, W]``, the object's pixels, at least one; others become background.

        Returns:
            uint8 ``[S, S, 3]``.

        Raises:
            InvalidImageError: the image is not uint8 ``[H, W, 3]``.
            BundleError: the bundle does not identify.
        """
        settings = self.identification_settings
        height, width = check_image(image).shape[:2]
        margin = settings.margin
        if box is None and mask is not None:
            box = mask_box(mask)
        elif box is None:
            box, margin = np.array([0, 0, width, height], dtype=np.float32), 0.0
        return crop_object(
            image, box, size=settings.crop_size, mask=mask, margin=margin, background=settings.background
        )

    def crop_reference(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the product out of a reference image as the identification graph wants it.

        Args:
            image: uint8 ``[H, W, 3]`` RGB; a plain background is removed.

        Returns:
            uint8 ``[S, S, 3]``.

        Raises:
            InvalidImageError: the image is not uint8 ``[H, W, 3]``.
            BundleError: the bundle does not identify.
        """
        settings = self.identification_settings
        return crop_reference(
            check_image(image),
            size=settings.crop_size,
            margin=settings.margin,
            background=settings.background,
        )

    def embed_crops(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed crops of objects.

        Args:
            crops: uint8 ``[H, W, 3]`` RGB each; letterboxed when not of the crop size.

        Returns:
            float32 ``[N, E]``, L2-normalised.

        Raises:
            InvalidImageError: a crop is not uint8 ``[H, W, 3]``.
            BundleError: the bundle does not identify.
        """
        settings = self.identification_settings
        size = (settings.crop_size, settings.crop_size)
        batch = np.empty((len(crops), *size, 3), dtype=np.uint8)
        for slot, crop in zip(batch, crops, strict=True):
            fits = check_image(crop).shape[:2] == size
            slot[...] = (
                crop if fits else Letterbox.fit(crop.shape[:2], size).apply(crop, padding=settings.background)
            )
        embeddings = np.empty((len(crops), settings.embedding_dim), dtype=np.float32)
        for start in range(0, len(crops), MAX_CROPS_AT_ONCE):
            images = self._to_tensor(batch[start : start + MAX_CROPS_AT_ONCE])
            features = self._sessions["backbone"].run({"images": images})["features"]
            output = self._sessions["identification"].run({"features": features})
            embeddings[start : start + len(images)] = output["embeddings"]
        return embeddings

    def embed_references(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed reference images of products: each is cut to the product first.

        Args:
            images: uint8 ``[H, W, 3]`` RGB each.

        Returns:
            float32 ``[N, E]``, L2-normalised.

        Raises:
            InvalidImageError: an image is not uint8 ``[H, W, 3]``, is empty or too large.
            BundleError: the bundle does not identify.
        """
        return self.embed_crops([self.crop_reference(image) for image in images])

    @property
    def segmentation_settings(self) -> SegmentationSpec:
        """The bundle's section of that name; BundleError when it has none."""
        settings = self.bundle.manifest.segmentation
        if settings is None:
            raise BundleError(f"model bundle {self.bundle.path} does not segment; choose one that does")
        return settings

    @property
    def identification_settings(self) -> IdentificationSpec:
        """The bundle's section of that name; BundleError when it has none."""
        settings = self.bundle.manifest.identification
        if settings is None:
            raise BundleError(f"model bundle {self.bundle.path} does not identify; choose one that does")
        return settings

    def _to_tensor(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        preprocessing = self.bundle.manifest.preprocessing
        return to_tensor(images, preprocessing.mean, preprocessing.std)

    def _identify(
        self, image: NDArray[np.uint8], objects: Objects, manifest: Iterable[str] | None
    ) -> Objects:
        if self.bundle.manifest.identification is None:
            return objects
        embeddings = self.embed_crops([self._object_crop(image, objects, i) for i in range(len(objects))])
        objects = objects.replace(embeddings=embeddings)
        if self.gallery is None:
            return objects
        top_k = self.top_k  # may be set from another thread meanwhile
        rankings = self.gallery.search(embeddings, top_k, manifest)
        scores = np.full((len(objects), top_k), np.nan, dtype=np.float32)
        for row, ranking in zip(scores, rankings, strict=True):
            row[: len(ranking)] = [score for _, score in ranking]
        products = [tuple(product for product, _ in ranking) for ranking in rankings]
        return objects.replace(product_ids=products, product_scores=scores)

    def _object_crop(self, image: NDArray[np.uint8], objects: Objects, i: int) -> NDArray[np.uint8]:
        """Crop object ``i`` from its surroundings alone: large images cost no more than small ones."""
        x1, y1, x2, y2 = objects.boxes[i].tolist()
        reach = max(x2 - x1, y2 - y1) * (1 + self.identification_settings.margin) / 2
        left, top = max(math.floor((x1 + x2) / 2 - reach), 0), max(math.floor((y1 + y2) / 2 - reach), 0)
        right, bottom = math.ceil((x1 + x2) / 2 + reach), math.ceil((y1 + y2) / 2 + reach)
        assert objects.instance_mask is not None
        visible = objects.instance_mask[top:bottom, left:right] == objects.instance_ids[i]
        box = objects.boxes[i] - np.array([left, top, left, top], dtype=np.float32)
        return self.crop(image[top:bottom, left:right], box=box, mask=visible)


def _check_bundle(bundle: ModelBundle, sessions: Mapping[str, Session]) -> None:
    manifest = bundle.manifest
    needed = {
        "backbone": True,
        "segmentation": manifest.segmentation is not None,
        "identification": manifest.identification is not None,
    }
    missing = [name for name, need in needed.items() if need and name not in sessions]
    if missing:
        raise BundleError(f"model bundle {bundle.path} has no graph {missing[0]!r}; export it again")
    patch = manifest.backbone.patch_size
    sides = list(manifest.segmentation.input_size) if manifest.segmentation else []
    sides += [manifest.identification.crop_size] if manifest.identification else []
    if any(side % patch for side in sides):
        raise BundleError(f"{bundle.path}: input sizes {sides} must be multiples of {patch}; export it again")


def _check_gallery(bundle: ModelBundle, gallery: Gallery | None) -> None:
    if gallery is None:
        return
    settings = bundle.manifest.identification
    if settings is None:
        raise GalleryError(f"{bundle.path} does not identify; use it without gallery {gallery.path}")
    fits = gallery.model in (None, bundle.fingerprint)
    if not fits or gallery.dimension not in (None, settings.embedding_dim):
        raise GalleryError(
            f"gallery {gallery.path} is of model {gallery.model} (width {gallery.dimension}), not of "
            f"{bundle.fingerprint} (width {settings.embedding_dim}); run `mca gallery import` again"
        )


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[Any]:
    """Add the milliseconds of a block to a stage."""
    started = perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + (perf_counter() - started) * 1000
