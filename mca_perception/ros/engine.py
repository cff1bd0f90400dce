"""The models behind the node: bundle, sessions, gallery and pipeline, opened together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import open_sessions
from mca_perception.errors import BundleError, McaError
from mca_perception.geometry import PADDING_VALUE
from mca_perception.identification.gallery import Gallery
from mca_perception.objects import Objects
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.resources import resource_path
from mca_perception.ros.frames import NO_CONTAINER, Container

__all__ = ["Engine", "bundle_folder"]

MAX_MANIFEST_PRODUCTS = 100_000
MAX_ID_LENGTH = 256


class Engine:
    """Everything that is loaded when the node is configured and released when it is cleaned up.

    Attributes:
        pipeline: from image to objects.
        model: ``name@fingerprint``.
        provider: ONNX Runtime's first execution provider.
        labels: class names.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        gallery: str | Path = "",
        providers: Sequence[str] = (),
    ) -> None:
        """Open a bundle, and a gallery when one is named.

        Args:
            model: folder of the bundle.
            gallery: an existing gallery file; empty for none.
            providers: ONNX Runtime execution providers, best first; empty for the default.

        Raises:
            BundleError: the bundle is missing, altered, of another version, or does not segment.
            GalleryError: the gallery is missing or belongs to another model.
        """
        folder = bundle_folder(model)
        bundle = ModelBundle.open(folder)
        settings = bundle.manifest.segmentation
        if settings is None:
            raise BundleError(f"model bundle {folder} does not segment; choose one that does")
        sessions = open_sessions(bundle, providers=list(providers) or None)
        self.gallery = Gallery.open(gallery, model=bundle.fingerprint, create=False) if gallery else None
        self.pipeline = PerceptionPipeline.from_bundle(folder, session=sessions, gallery=self.gallery)
        self.model = f"{bundle.manifest.name}@{bundle.fingerprint}"
        self.provider = str(next(iter(getattr(sessions["backbone"], "providers", ())), "unknown"))
        self.labels = settings.labels
        self._calibrated = settings.score_threshold
        # The first run allocates, and shows here rather than on a frame if a graph does not work.
        self.pipeline.perceive(np.full((*settings.input_size, 3), PADDING_VALUE, np.uint8))

    def threshold(self, score_threshold: float) -> float:
        """The threshold that a parameter value stands for: negative means as calibrated."""
        return self._calibrated if score_threshold < 0 else score_threshold

    def perceive(
        self, image: NDArray[np.uint8], container: Container, *, score_threshold: float, top_k: int
    ) -> Objects:
        """Perceive the objects of one image.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            container: limits the products.
            score_threshold: see :meth:`threshold`.
            top_k: products per object.

        Raises:
            InvalidImageError: the image cannot be used.
        """
        self.pipeline.score_threshold = self.threshold(score_threshold)
        self.pipeline.top_k = top_k
        return self.pipeline.perceive(image, manifest=container.product_ids)

    def container(self, container_id: str, product_ids: Sequence[str]) -> tuple[Container, list[str]]:
        """Check a container's manifest against the gallery.

        Args:
            container_id: name of the container.
            product_ids: its products; empty lifts the limit.

        Returns:
            The container, and the products that the gallery does not hold.

        Raises:
            ValueError: too many products, or an id that is empty or too long.
        """
        if len(product_ids) > MAX_MANIFEST_PRODUCTS:
            raise ValueError(
                f"{len(product_ids)} products given, at most {MAX_MANIFEST_PRODUCTS} are allowed"
            )
        for name in (container_id, *product_ids):
            if len(name) > MAX_ID_LENGTH:
                raise ValueError(
                    f"id {name[:40]!r}... has {len(name)} characters, the limit is {MAX_ID_LENGTH}"
                )
        if not all(product_ids):
            raise ValueError("product_ids holds an empty id; leave it out")
        if not product_ids:
            return (Container(container_id) if container_id else NO_CONTAINER), []
        manifest = tuple(dict.fromkeys(product_ids))
        unknown = self.gallery.unknown(manifest) if self.gallery else list(manifest)
        return Container(container_id, manifest, len(unknown)), unknown

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics."""
        return {
            "model": self.model,
            "provider": self.provider,
            "gallery": "yes" if self.gallery else "",
            "gallery_products": len(self.gallery) if self.gallery else 0,
        }

    def close(self) -> None:
        """Release the gallery."""
        if self.gallery is not None:
            self.gallery.close()


def bundle_folder(model: str | Path) -> Path:
    """A bundle named relative to the current folder, or one that is shipped with the package."""
    folder = Path(model)
    if folder.is_absolute() or folder.exists():
        return folder
    try:
        return resource_path(str(model))
    except McaError:
        return folder
