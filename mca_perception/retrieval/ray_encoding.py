"""Encode images by Ray Data: on all machines of a cluster, or in several processes of one.

Workers read the images from the places that the source names, so folders and bundle have to lie at the same paths
everywhere. The store is written by the one process that asked; it goes on where it was stopped, as without Ray.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import InvalidImageError, RetrievalError
from mca_perception.retrieval.encoder import DualEncoder
from mca_perception.retrieval.indexing import Encode, Encoded
from mca_perception.retrieval.sources import ImageReader, ImageSource
from mca_perception.retrieval.store import ImageRecord

__all__ = ["LOCAL", "ray_encoding"]

LOCAL = "local"
"""Address of a Ray of this machine alone, which ends with the caller."""
_LOCAL_OBJECT_BYTES = 1 << 30
_RECORDS_PER_BLOCK = 256
_CONNECT_S = 10.0


@contextmanager
def ray_encoding(
    bundle: Path, image_model: str, *, address: str = LOCAL, workers: int | None = None
) -> Iterator[Encode]:
    """Workers that encode for :func:`~mca_perception.retrieval.indexing.index_images`; they end with the block.

    Args:
        bundle: folder of the bundle, on every machine.
        image_model: fingerprint that its image side must have there.
        address: of the cluster, ``HOST:PORT`` or ``auto``; `LOCAL` for this machine alone.
        workers: processes that encode, one processor each; by default as many as the cluster has processors.

    Raises:
        RetrievalError: Ray is not installed, the cluster is not reached, or a worker cannot do its work.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RetrievalError("--ray needs Ray: pip install -c constraints.txt -e '.[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    local: dict[str, Any] = {"object_store_memory": _LOCAL_OBJECT_BYTES} if address == LOCAL else {}
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise RetrievalError(
            f"no Ray cluster at {address} ({error}); check the address, or use --ray {LOCAL}"
        ) from error
    try:
        yield partial(
            _encode,
            {"bundle": str(bundle.resolve()), "image_model": image_model},
            workers or max(1, int(ray.cluster_resources().get("CPU", 1))),
        )
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RetrievalError(
            f"encoding on Ray failed ({reason}); bundle and images must lie at the same paths on every machine. What "
            "is in the store is kept: run the same command again"
        ) from error
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Try a connection: Ray itself tries for five minutes.

    Raises:
        OSError: nobody answers.
        ValueError: the address is written otherwise.
    """
    if address in (LOCAL, "auto"):
        return
    host, separator, port = address.rpartition(":")
    if not host or not separator or not port.isdigit() or not 0 < int(port) < 65_536 or "/" in address:
        raise ValueError("it is not HOST:PORT")
    socket.create_connection((host, int(port)), _CONNECT_S).close()


def _encode(
    model: dict[str, str], workers: int, source: ImageSource, wanted: set[str], batch: int
) -> Generator[list[Encoded], None, None]:
    """See :data:`~mca_perception.retrieval.indexing.Encode`."""
    import pyarrow
    import ray.data

    tables = [
        pyarrow.Table.from_pylist([record._asdict() for record in records])
        for records in _blocks(source, wanted)
    ]
    if not tables:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    dataset = ray.data.from_arrow(tables).map_batches(
        _Worker,
        fn_constructor_kwargs=model,
        batch_size=batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=1,
    )
    for rows in dataset.iter_batches(batch_size=batch, batch_format="numpy"):
        columns = (rows["image_id"], rows["uri"], rows["metadata"], rows["vector"], rows["readable"])
        yield [
            Encoded(ImageRecord(str(name), str(uri), str(metadata)), vector if readable else None)
            for name, uri, metadata, vector, readable in zip(*columns, strict=True)
        ]


def _blocks(source: ImageSource, wanted: set[str]) -> Iterator[list[ImageRecord]]:
    """Wanted records, each once, in order, in parts that one worker takes at a time."""
    block: list[ImageRecord] = []
    left = set(wanted)
    for record in (record for group in source.records() for record in group):
        if record.image_id in left:
            left.discard(record.image_id)
            block.append(record)
        if len(block) == _RECORDS_PER_BLOCK:
            yield block
            block = []
    if block:
        yield block


class _Worker:
    """Encodes batches in a process of its own."""

    def __init__(self, bundle: str, image_model: str) -> None:
        self._encoder = DualEncoder.from_bundle(bundle, threads=1)
        self._reader = ImageReader()
        if self._encoder.image_fingerprint != image_model:
            raise RetrievalError(
                f"bundle {bundle} has image side {self._encoder.image_fingerprint} on this machine, not {image_model}"
            )

    def __call__(self, table: Any) -> dict[str, Any]:
        """Add ``vector`` and ``readable`` to a table of records."""
        images = [self._load(uri) for uri in table["uri"].to_pylist()]
        readable = np.array([image is not None for image in images])
        vectors = np.zeros((len(images), self._encoder.dimension), np.float32)
        vectors[readable] = self._encoder.encode_images([image for image in images if image is not None])
        return {**table.to_pydict(), "vector": vectors, "readable": readable}

    def _load(self, uri: str) -> NDArray[np.uint8] | None:
        try:
            return self._reader.open(uri)
        except InvalidImageError:
            return None
