"""From one image to its objects: segmentation, then identification of every object, through one backbone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.manifest import IdentificationSpec, SegmentationSpec
from mca_perception.deploy.session import Session, open_sessions
from mca_perception.deploy.sessions.selection import AUTOMATIC
from mca_perception.errors import BundleError, GalleryError, InvalidImageError
from mca_perception.identification.gallery import Gallery
from mca_perception.objects import Objects
from mca_perception.pipeline.answers import Answer, look_up
from mca_perception.pipeline.embedding import IDENTIFICATION_GRAPHS
from mca_perception.pipeline.inspection import GRAPHS as DEFECT_GRAPHS
from mca_perception.pipeline.inspection import DefectInspector
from mca_perception.pipeline.preprocessing import CropFeatures
from mca_perception.pipeline.segmenting import Segmenter, chosen_head, timed
from mca_perception.segmentation.postprocess import to_objects

__all__ = ["PerceptionPipeline"]


class PerceptionPipeline(Segmenter):
    """Perceives the objects of an image; build it with :meth:`from_bundle`.

    Safe to call from several threads.

    Attributes:
        bundle: the model.
        gallery: where products are looked up; ``None`` leaves objects without products.
        score_threshold: objects below it are left out; as calibrated in the bundle unless set.
        classes: labels of the objects that are wanted; empty for all.
        top_k: products per object.
        reject_unknown: leave objects without products when a calibrated bundle finds none of those searched similar
            enough. Switch it off where images differ from those that the bundle was calibrated on.
        identifies: embed objects and look them up, where the bundle can.
        inspects: judge whether objects are defective, where the bundle can; off at first, for its alarms are promised
            for pictures of picks.
        tiling: look at crowded images in tiles, too.

    Example:
        >>> pipeline = PerceptionPipeline.from_bundle("models/nano")  # doctest: +SKIP
        >>> objects = pipeline.perceive(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: ModelBundle,
        sessions: Mapping[str, Session],
        *,
        head: str | None = None,
        gallery: Gallery | None = None,
        score_threshold: float | None = None,
        top_k: int = 5,
    ) -> None:
        """Check that bundle, sessions and gallery fit together.

        Raises:
            BundleError: the bundle lacks a graph or a setting, or does not hold the segmentation head ``head``.
            GalleryError: the gallery belongs to another model.
            ValueError: ``score_threshold`` or ``top_k`` is out of range.
        """
        segmentation = chosen_head(bundle, head)
        _check_bundle(bundle, sessions, segmentation)
        _check_gallery(bundle, gallery)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        super().__init__(bundle, sessions, segmentation, score_threshold)
        self.gallery = gallery
        self.classes: tuple[str, ...] = ()
        self.top_k = top_k
        self.reject_unknown = True
        self.identifies = bundle.manifest.identification is not None
        has_defects = bundle.manifest.defects is not None and all(name in sessions for name in DEFECT_GRAPHS)
        self._inspector = DefectInspector(bundle, sessions) if has_defects else None
        self.inspects = False

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        head: str | None = None,
        session: str | Mapping[str, Session] = AUTOMATIC,
        gallery: Gallery | None = None,
        providers: Sequence[str] | None = None,
        score_threshold: float | None = None,
        top_k: int = 5,
    ) -> PerceptionPipeline:
        """Open a model bundle.

        Args:
            path: the bundle's folder.
            head: segmentation head, ``edge`` or ``cascade``; the bundle's default when not given.
            session: back end, by the names that :func:`~mca_perception.deploy.open_sessions` takes; or sessions that
                it opened, to share one backbone.
            gallery: product gallery filled with this bundle's embeddings.
            providers: ONNX Runtime execution providers, best first; they take the place of a back end.
            score_threshold: replaces the bundle's calibrated one.
            top_k: products per object.

        Raises:
            BundleError: the bundle is missing, altered, of another version or incomplete, or lacks that head; or the
                back end cannot be used.
            GalleryError: the gallery belongs to another model.
        """
        bundle = ModelBundle.open(path)
        if isinstance(session, str):
            segmentation = chosen_head(bundle, head)
            graphs = {*IDENTIFICATION_GRAPHS, *DEFECT_GRAPHS, *([segmentation.graph] if segmentation else [])}
            session = open_sessions(bundle, graphs=graphs, session=session, providers=providers)
        return cls(bundle, session, head=head, gallery=gallery, score_threshold=score_threshold, top_k=top_k)

    def perceive(self, image: NDArray[np.uint8], *, manifest: Iterable[str] | None = None) -> Objects:
        """Segment an image and identify every object in it.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            manifest: products that may be there; others are not considered. Unknown ids are ignored.

        Returns:
            The objects, best score first, in pixels of ``image``, with ``timings_ms`` of the stages
            letterbox, backbone, segmentation, postprocess, identification (with the crops and their backbone pass),
            defects where there are any, and total. ``embeddings`` are there when the bundle identifies, products when
            there is also a gallery, and ``defects`` when it inspects.

        Raises:
            InvalidImageError: the image is not uint8 ``[H, W, 3]``, is empty, or exceeds 50 megapixels.
            BundleError: the bundle does not segment.
        """
        timings: dict[str, float] = {}
        with timed(timings, "total"):
            candidates = self.candidates(image, timings_ms=timings)
            with timed(timings, "postprocess"):
                objects = to_objects(candidates, self.segmentation_settings.labels, classes=self.classes)
            objects = self.look_closer(image, objects, manifest=manifest, timings_ms=timings)
        return objects.replace(timings_ms=timings)

    def look_closer(
        self,
        image: NDArray[np.uint8],
        objects: Objects,
        *,
        manifest: Iterable[str] | None = None,
        timings_ms: dict[str, float] | None = None,
    ) -> Objects:
        """Identify and inspect every object, from one crop of it and one backbone pass over the crops.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            objects: of that image, with ``instance_mask``; the pipeline's own or those of another segmentation.
            manifest: as for :meth:`perceive`.
            timings_ms: receives the milliseconds of the stages.

        Raises:
            InvalidImageError: the objects are of an image of another size, or have no ``instance_mask``.
        """
        if objects.image_size != image.shape[:2] or objects.instance_mask is None:
            raise InvalidImageError(
                f"the image has {image.shape[:2]} pixels, the objects are of one with {objects.image_size}"
                f"{'' if objects.instance_mask is not None else ' and have no mask'}; give those of this image"
            )
        timings = {} if timings_ms is None else timings_ms
        parts: list[CropFeatures] = []
        with timed(timings, "identification"):
            if self.identifies or self.inspects:
                crops = [self.object_crop(image, objects, i) for i in range(len(objects))]
                parts = list(self.crop_features(crops))
            if self.identifies:
                objects = self._identify(objects, self.embed_features(parts), manifest)
        if self.inspects and self._inspector is not None:
            with timed(timings, "defects"):
                objects = objects.replace(defects=self._inspector.probabilities(parts))
        return objects

    def identify_pick(
        self,
        crops: Mapping[int, NDArray[np.uint8]],
        *,
        manifest: Iterable[str] | None = None,
        top_k: int | None = None,
        reject_unknown: bool | None = None,
    ) -> Answer:
        """Identify one picked object from one or several views of it.

        Args:
            crops: from :meth:`crop`, by slot: 0 for the view before the pick, 1 and on for those after it.
            manifest: products that may be there; others are not considered.
            top_k: products in the answer; the pipeline's own number when not given.
            reject_unknown: likewise.

        Raises:
            ValueError: there is no crop.
            InvalidImageError: a crop is not uint8 ``[H, W, 3]``.
            BundleError: the bundle does not identify.
            GalleryError: the pipeline has no gallery.
        """
        if not crops:
            raise ValueError("a pick needs at least one view; give its crops by slot")
        if self.gallery is None:
            raise GalleryError("the pipeline has no gallery to look the pick up in; give it one")
        query = self.fuse_views(dict(zip(crops, self.embed_crops(list(crops.values())), strict=True)))
        (answer,) = look_up(
            self.gallery,
            [query],
            self.identification_settings,
            top_k=self.top_k if top_k is None else top_k,
            manifest=manifest,
            views=len(crops),
            reject_unknown=self.reject_unknown if reject_unknown is None else reject_unknown,
        )
        return answer

    def _identify(
        self, objects: Objects, embeddings: NDArray[np.float32], manifest: Iterable[str] | None
    ) -> Objects:
        objects = objects.replace(embeddings=embeddings)
        if self.gallery is None:
            return objects
        top_k = self.top_k  # may be set from another thread meanwhile
        answers = look_up(
            self.gallery,
            list(embeddings[:, None]),
            self.identification_settings,
            top_k=top_k,
            manifest=manifest,
            reject_unknown=self.reject_unknown,
        )
        scores = np.full((len(objects), top_k), np.nan, dtype=np.float32)
        for row, answer in zip(scores, answers, strict=True):
            row[: len(answer.scores)] = answer.scores
        return objects.replace(
            product_ids=[answer.products for answer in answers],
            product_scores=scores,
            product_confidences=np.array([answer.confidence for answer in answers], np.float32),
        )

    def object_crop(self, image: NDArray[np.uint8], objects: Objects, i: int) -> NDArray[np.uint8]:
        """Crop object ``i`` of an image as identification and inspection see it; uint8 ``[S, S, 3]``.

        It is cut from its surroundings alone: large images cost no more than small ones.
        """
        settings = self.crop_settings
        x1, y1, x2, y2 = objects.boxes[i].tolist()
        reach = max(x2 - x1, y2 - y1) * (1 + settings.margin) / 2
        left, top = max(math.floor((x1 + x2) / 2 - reach), 0), max(math.floor((y1 + y2) / 2 - reach), 0)
        right, bottom = math.ceil((x1 + x2) / 2 + reach), math.ceil((y1 + y2) / 2 + reach)
        assert objects.instance_mask is not None
        visible = objects.instance_mask[top:bottom, left:right] == objects.instance_ids[i]
        box = objects.boxes[i] - np.array([left, top, left, top], dtype=np.float32)
        masked = isinstance(settings, IdentificationSpec) or settings.masked
        return self.crop(image[top:bottom, left:right], box=box, mask=visible if masked else None)


def _check_bundle(
    bundle: ModelBundle, sessions: Mapping[str, Session], segmentation: SegmentationSpec | None
) -> None:
    manifest = bundle.manifest
    needed = {"backbone": True, "identification": manifest.identification is not None}
    if manifest.identification is not None:
        needed["fusion"] = manifest.identification.views is not None
        needed["reference_fusion"] = manifest.identification.reference_fusion == "attention"
    if segmentation is not None:
        needed[segmentation.graph] = True
    missing = [name for name, need in needed.items() if need and name not in sessions]
    if missing:
        raise BundleError(f"model bundle {bundle.path} has no graph {missing[0]!r}; export it again")
    patch = manifest.backbone.patch_size
    sides = list(segmentation.input_size) if segmentation else []
    sides += [manifest.identification.crop_size] if manifest.identification else []
    if any(side % patch for side in sides):
        raise BundleError(f"{bundle.path}: input sizes {sides} must be multiples of {patch}; export it again")


def _check_gallery(bundle: ModelBundle, gallery: Gallery | None) -> None:
    if gallery is None:
        return
    settings = bundle.manifest.identification
    if settings is None:
        raise GalleryError(f"{bundle.path} does not identify; use it without gallery {gallery.path}")
    fits = gallery.model in (None, bundle.embedding_fingerprint)
    if not fits or gallery.dimension not in (None, settings.embedding_dim):
        raise GalleryError(
            f"gallery {gallery.path} is of model {gallery.model} (width {gallery.dimension}), not of "
            f"{bundle.embedding_fingerprint} (width {settings.embedding_dim}); run `mca gallery import` again"
        )
