"""Manifests: which products are in the container that an image shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mca_perception.errors import DatasetError

__all__ = ["ImageManifest", "read_manifest"]

MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class ImageManifest:
    """Container of one image."""

    container_id: str
    product_ids: tuple[str, ...]


def read_manifest(path: Path) -> ImageManifest | None:
    """Read ``manifests/<image name>.json``.

    Two forms are read: ``{"container_id": ..., "products": {<product id>: ...}}``, and ARMBench's
    ``container.json`` with the products at the top, where the container is named after the file.

    Returns:
        ``None`` when there is no such file.

    Raises:
        DatasetError: it is larger than 64 MiB or of another form.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise DatasetError(
            f"manifest {path} is larger than {MAX_MANIFEST_BYTES >> 20} MiB; split it by container"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"manifest {path} is not JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"manifest {path} must hold a JSON object with the products as keys; write it again"
        )
    products = content.get("products", content)
    if not isinstance(products, (dict, list)):
        raise DatasetError(f"manifest {path}: 'products' must be an object or a list; write it again")
    return ImageManifest(
        str(content.get("container_id", path.stem)), tuple(str(product) for product in products)
    )
