"""Crops of objects, views of picks and reference images, as embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.manifest import DefectsSpec, IdentificationSpec
from mca_perception.deploy.session import Session
from mca_perception.errors import BundleError
from mca_perception.geometry import Letterbox
from mca_perception.identification.crops import crop_object, crop_reference, mask_box
from mca_perception.pipeline.preprocessing import CropFeatures, check_image, network_input

__all__ = ["IDENTIFICATION_GRAPHS", "MAX_CROPS_AT_ONCE", "Embedder"]

MAX_CROPS_AT_ONCE = 64
IDENTIFICATION_GRAPHS = ("identification", "references", "fusion", "reference_fusion")
"""The embedding of crops; of reference crops, where it differs; and what joins views, and references, where learned."""


class Embedder:
    """The part of a pipeline that makes embeddings. Safe to call from several threads.

    Attributes:
        bundle: the model.
    """

    def __init__(self, bundle: ModelBundle, sessions: Mapping[str, Session]) -> None:
        self.bundle = bundle
        self._sessions = sessions

    def crop(
        self,
        image: NDArray[np.uint8],
        *,
        box: NDArray[np.float32] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.uint8]:
        """Cut an object out of an image as identification and defect graph want it.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            box: ``[4]`` xyxy in pixels of ``image``; tight around ``mask`` when not given, the whole image,
                without margin, when there is neither.
            mask: bool ``[H, W]``, the object's pixels, at least one; others become background.

        Returns:
            uint8 ``[S, S, 3]``.

        Raises:
            InvalidImageError: the image is not uint8 ``[H, W, 3]``.
            BundleError: the bundle looks at no crops.
        """
        settings = self.crop_settings
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

    def embed_crops(
        self, crops: Sequence[NDArray[np.uint8]], *, references: bool = False
    ) -> NDArray[np.float32]:
        """Embed crops of objects.

        Args:
            crops: uint8 ``[H, W, 3]`` RGB each; letterboxed when not of the crop size.
            references: they are crops of reference images, which some bundles embed by a head of their own.

        Returns:
            float32 ``[N, E]``, L2-normalised.

        Raises:
            InvalidImageError: a crop is not uint8 ``[H, W, 3]``.
            BundleError: the bundle does not identify.
        """
        return self.embed_features(self.crop_features(crops), references=references)

    def embed_features(
        self, parts: Iterable[CropFeatures], *, references: bool = False
    ) -> NDArray[np.float32]:
        """Embed crops from their features, as :meth:`crop_features` gives them; otherwise as :meth:`embed_crops`."""
        graph = "references" if references and "references" in self._sessions else "identification"
        rows = [np.zeros((0, self.identification_settings.embedding_dim), np.float32)]
        rows += [self._sessions[graph].run({"features": part.features})["embeddings"] for part in parts]
        return np.concatenate(rows)

    def crop_features(self, crops: Sequence[NDArray[np.uint8]]) -> Iterator[CropFeatures]:
        """Send crops through the backbone, a bounded number at once.

        Args:
            crops: uint8 ``[H, W, 3]`` RGB each; letterboxed when not of the crop size.

        Yields:
            Of the next crops, at most 64.

        Raises:
            InvalidImageError: a crop is not uint8 ``[H, W, 3]``.
            BundleError: the bundle looks at no crops.
        """
        settings = self.crop_settings
        size = (settings.crop_size, settings.crop_size)
        batch = np.empty((len(crops), *size, 3), dtype=np.uint8)
        for slot, crop in zip(batch, crops, strict=True):
            fits = check_image(crop).shape[:2] == size
            slot[...] = (
                crop if fits else Letterbox.fit(crop.shape[:2], size).apply(crop, padding=settings.background)
            )
        for start in range(0, len(crops), MAX_CROPS_AT_ONCE):
            images = self._to_tensor(batch[start : start + MAX_CROPS_AT_ONCE])
            yield CropFeatures(images, self._sessions["backbone"].run({"images": images})["features"])

    def embed_references(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed the reference images of a product: each is cut to the product first.

        Args:
            images: uint8 ``[H, W, 3]`` RGB each.

        Returns:
            float32 ``[N, E]``, L2-normalised; N equal rows where the bundle fuses the references of a product.

        Raises:
            InvalidImageError: an image is not uint8 ``[H, W, 3]``, is empty or too large.
            BundleError: the bundle does not identify.
        """
        rows = self.embed_crops([self.crop_reference(image) for image in images], references=True)
        return np.repeat(self.fuse_references(rows), len(rows), 0) if self.fuses_references else rows

    @property
    def fuses_references(self) -> bool:
        """Whether the references of a product are joined to one embedding."""
        return self.identification_settings.reference_fusion is not None

    def fuse_references(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Join the embeddings ``[R, E]`` of a product's references to ``[1, E]``, L2-normalised."""
        if self.identification_settings.reference_fusion == "attention":
            inputs = {"embeddings": embeddings[None], "present": np.ones((1, len(embeddings)), bool)}
            return np.asarray(self._sessions["reference_fusion"].run(inputs)["fused"], np.float32)
        mean = embeddings.mean(axis=0, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    def fuse_views(self, views: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Join the embeddings of one pick's views to the query that is compared with references.

        Args:
            views: float32 ``[E]`` by slot: 0 for the view before the pick, 1 and on for those after it.

        Returns:
            float32 ``[1, E]`` where the bundle has a network for it and there are several views, else all the views
            ``[V, E]``: the most similar one then counts.
        """
        slots = self.identification_settings.views
        rows = np.stack(list(views.values()))
        if slots is None or len(views) == 1 or max(views) >= slots:
            return rows
        embeddings = np.zeros((1, slots, rows.shape[1]), np.float32)
        present = np.zeros((1, slots), bool)
        embeddings[0, list(views)], present[0, list(views)] = rows, True
        return np.asarray(
            self._sessions["fusion"].run({"embeddings": embeddings, "present": present})["fused"], np.float32
        )

    @property
    def crop_settings(self) -> IdentificationSpec | DefectsSpec:
        """The settings that say how crops are made: identification and defects make the same ones."""
        settings = self.bundle.manifest.identification or self.bundle.manifest.defects
        if settings is None:
            raise BundleError(
                f"model bundle {self.bundle.path} neither identifies nor inspects; choose one that does"
            )
        return settings

    @property
    def identification_settings(self) -> IdentificationSpec:
        """The bundle's section of that name; BundleError when it has none."""
        settings = self.bundle.manifest.identification
        if settings is None:
            raise BundleError(f"model bundle {self.bundle.path} does not identify; choose one that does")
        return settings

    def _to_tensor(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        return network_input(images, self.bundle.manifest.preprocessing)
