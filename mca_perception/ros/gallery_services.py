"""Services that look into the product gallery and change it while frames are perceived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mca_perception_msgs.srv import AddProduct, GalleryInfo, RemoveProduct
from rclpy.node import Node

from mca_perception.errors import GalleryError, McaError
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import small_copy
from mca_perception.ros.images import decode_compressed

__all__ = ["MAX_PAGE", "MAX_REFERENCES", "GalleryServices"]

MAX_REFERENCES = 32
"""References in one call: the executor is busy with them meanwhile."""

MAX_PAGE = 10_000
"""Product ids in one answer."""


class GalleryServices:
    """``add_product``, ``remove_product`` and ``gallery_info``.

    Args:
        node: offers the services.
        pipeline: embeds references; its gallery is the one that is changed.
        changed: called after every change.
        report: told of errors that are not the caller's.
    """

    def __init__(
        self,
        node: Node,
        pipeline: PerceptionPipeline,
        *,
        changed: Callable[[], None],
        report: Callable[[Exception], None],
    ) -> None:
        self._node = node
        self._pipeline = pipeline
        self._changed = changed
        self._report = report
        self._services = [
            node.create_service(kind, name, self._guarded(answer))
            for kind, name, answer in (
                (AddProduct, "add_product", self._add),
                (RemoveProduct, "remove_product", self._remove),
                (GalleryInfo, "gallery_info", self._info),
            )
        ]

    def close(self) -> None:
        """Withdraw the services."""
        for service in self._services:
            self._node.destroy_service(service)

    @property
    def _gallery(self) -> Gallery:
        if self._pipeline.gallery is None:
            raise GalleryError("the node has no gallery; start it with the parameter gallery")
        return self._pipeline.gallery

    def _guarded(self, answer: Callable[[Any, Any], None]) -> Callable[[Any, Any], Any]:
        """Turn what goes wrong into an answer: nothing a caller sends ends the node."""

        def call(request: Any, response: Any) -> Any:
            try:
                answer(request, response)
                response.success = True
            except McaError as error:
                response.message = str(error)
            except Exception as error:
                self._report(error)
                response.message = f"internal error: {error}"
            return response

        return call

    def _add(self, request: AddProduct.Request, response: AddProduct.Response) -> None:
        gallery = self._gallery
        response.product_count = len(gallery)
        references = request.references
        if not 1 <= len(references) <= MAX_REFERENCES:
            raise GalleryError(
                f"product {request.product_id!r} comes with {len(references)} references; give 1 to {MAX_REFERENCES}"
            )
        crops, copies = [], []
        for reference in references:  # one large picture in memory at a time
            picture = decode_compressed(reference)
            crops.append(self._pipeline.crop_reference(picture))
            copies.append(small_copy(picture))
        replaced = not gallery.unknown([request.product_id])
        gallery.add(request.product_id, self._pipeline.embed_crops(crops), copies)
        response.replaced = replaced
        response.product_count = len(gallery)
        self._changed()

    def _remove(self, request: RemoveProduct.Request, response: RemoveProduct.Response) -> None:
        gallery = self._gallery
        response.product_count = len(gallery)
        gallery.remove(request.product_id)
        response.product_count = len(gallery)
        self._changed()

    def _info(self, request: GalleryInfo.Request, response: GalleryInfo.Response) -> None:
        if request.limit > MAX_PAGE:
            raise GalleryError(f"limit is {request.limit}; ask for at most {MAX_PAGE} ids at a time")
        gallery = self._gallery
        counts = gallery.reference_counts()
        response.path = str(gallery.path)
        response.product_count = len(counts)
        response.reference_count = sum(counts.values())
        response.dimension = gallery.dimension or 0
        response.model = gallery.model or ""
        rest = sorted(product for product in counts if product > request.after)
        response.product_ids = rest[: request.limit]
