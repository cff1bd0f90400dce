"""Services that look into the product gallery and change it while frames are perceived."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mca_perception_msgs.srv import AddProduct, GalleryInfo, RemoveProduct

from mca_perception.errors import GalleryError
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline.references import small_copy
from mca_perception.ros.engine import Engine, EngineSlot
from mca_perception.ros.images import decode_compressed
from mca_perception.ros.service_threads import ServiceThread

__all__ = ["MAX_PAGE", "MAX_REFERENCES", "GalleryServices"]

MAX_REFERENCES = 32
"""References in one call: other callers wait for them."""

MAX_PAGE = 10_000
"""Product ids in one answer."""


class GalleryServices:
    """``add_product``, ``remove_product`` and ``gallery_info``.

    Args:
        thread: offers the services.
        engines: embeds references; its gallery is the one that is changed.
        changed: called after every change.
    """

    def __init__(self, thread: ServiceThread, engines: EngineSlot, *, changed: Callable[[], None]) -> None:
        self._engines = engines
        self._changed = changed
        thread.add(AddProduct, "add_product", self._add)
        thread.add(RemoveProduct, "remove_product", self._remove)
        thread.add(GalleryInfo, "gallery_info", self._info)

    def _add(self, request: AddProduct.Request, response: AddProduct.Response) -> None:
        with self._engines.use() as engine:
            gallery = _gallery(engine)
            response.product_count = len(gallery)
            references = request.references
            if not 1 <= len(references) <= MAX_REFERENCES:
                raise GalleryError(
                    f"product {request.product_id!r} comes with {len(references)} references; "
                    f"give 1 to {MAX_REFERENCES}"
                )
            crops, copies = [], []
            for reference in references:  # one large picture in memory at a time
                picture = decode_compressed(reference)
                crops.append(engine.pipeline.crop_reference(picture))
                copies.append(small_copy(picture))
            replaced = not gallery.unknown([request.product_id])
            rows = engine.pipeline.embed_crops(crops, references=True)
            if engine.pipeline.fuses_references:
                rows = np.repeat(engine.pipeline.fuse_references(rows), len(rows), axis=0)
            gallery.add(request.product_id, rows, copies)
            response.replaced = replaced
            response.product_count = len(gallery)
        self._changed()

    def _remove(self, request: RemoveProduct.Request, response: RemoveProduct.Response) -> None:
        with self._engines.use() as engine:
            gallery = _gallery(engine)
            response.product_count = len(gallery)
            gallery.remove(request.product_id)
            response.product_count = len(gallery)
        self._changed()

    def _info(self, request: GalleryInfo.Request, response: GalleryInfo.Response) -> None:
        if request.limit > MAX_PAGE:
            raise GalleryError(f"limit is {request.limit}; ask for at most {MAX_PAGE} ids at a time")
        with self._engines.use() as engine:
            gallery = _gallery(engine)
            counts = gallery.reference_counts()
            response.path = str(gallery.path)
            response.product_count = len(counts)
            response.reference_count = sum(counts.values())
            response.dimension = gallery.dimension or 0
            response.model = gallery.model or ""
        rest = sorted(product for product in counts if product > request.after)
        response.product_ids = rest[: request.limit]


def _gallery(engine: Engine) -> Gallery:
    if engine.gallery is None:
        raise GalleryError("the node has no gallery; start it with the parameter gallery")
    return engine.gallery
