"""A dual encoder's bundle in a quarter of its size: weights as int8 with a scale per channel, computed in float32.

Activations stay as they are, so there are no ranges to find and any runtime gives the same vectors. The weights that
another training could start from are left out.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mca_perception.datasets.images import resize_square
from mca_perception.deploy.bundle import write_bundle
from mca_perception.deploy.graph_files import (
    SMALLEST_WEIGHT,
    Stored,
    load_graph,
    replace_weights,
    save_graph,
)
from mca_perception.errors import BundleError
from mca_perception.retrieval.bundle import RetrievalBundle
from mca_perception.retrieval.card import CARD_NAME, model_card
from mca_perception.retrieval.encoder import DualEncoder

__all__ = ["compact_bundle", "compact_graph"]

SMALLEST_COSINE = 0.99
"""Of a vector to the one from the float32 graphs."""
_LARGEST_CODE = 127
_PROBE_SIDE = 96
_PROBE_TEXTS = (
    "a red box",
    "a tall green bottle of shampoo and a small can",
    "Lemons are sour and yellow. They are sold by the piece.",
    "blue",
)


def compact_bundle(
    bundle: RetrievalBundle, directory: str | os.PathLike[str], *, version: str | None = None
) -> RetrievalBundle:
    """Write ``bundle`` to ``directory`` with int8 weights; its vectors are compared with those before.

    Args:
        bundle: float32 graphs.
        directory: bundle folder, replaced as a whole.
        version: of the new bundle; by default that of the old one.

    Raises:
        BundleError: a vector changes by more than `SMALLEST_COSINE` allows, or the vocabulary is missing.
    """
    manifest = bundle.manifest
    fields = manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    spec = manifest.retrieval.tokenizer
    kept = [spec.file] if spec.file is not None else []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, str | Path | bytes] = {name: bundle.path / name for name in kept}
        for name, graph in manifest.graphs.items():
            files[graph.file] = Path(folder, graph.file)
            compact_graph(bundle.path_of(name), Path(folder, graph.file))
        trial = write_bundle(Path(folder, "trial"), fields, files, RetrievalBundle)
        cosines = _cosines(bundle, trial)
        if min(cosines.values()) < SMALLEST_COSINE:
            raise BundleError(
                f"{bundle.path}: int8 weights change vectors too much (cosine {min(cosines.values()):.4f}, at least "
                f"{SMALLEST_COSINE}); use the bundle as it is"
            )
        fields["training"] = {**fields["training"], "int8_weights_cosine": cosines}
        fields["version"] = version or fields["version"]
        files[CARD_NAME] = model_card(fields).encode()
        return write_bundle(directory, fields, files, RetrievalBundle)


def compact_graph(path: Path, target: Path) -> None:
    """Put the large weights of a graph into int8.

    A cast and a product make them float32 again. Runtimes do that once, when they load the graph, as both read
    constants alone; of DequantizeLinear many think that it belongs to what comes behind, and compute it every time.
    """
    model = load_graph(path)
    columns = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}

    def coded(name: str, values: NDArray[np.float32]) -> Stored | None:
        if values.ndim < 2 or values.size < SMALLEST_WEIGHT:
            return None
        # Output channels of a product are columns; rows of convolutions and tables, which may have axes of 1 in front.
        wide = next(axis for axis, size in enumerate(values.shape) if size > 1)
        codes, scales = _quantised(values, values.ndim - 1 if name in columns else wide)
        names = [f"{name}_{part}" for part in ("codes", "scales", "cast")]
        cast = helper.make_node("Cast", names[:1], names[2:], to=onnx.TensorProto.FLOAT)
        tensors = [numpy_helper.from_array(codes, names[0]), numpy_helper.from_array(scales, names[1])]
        return tensors, [cast, helper.make_node("Mul", names[2:0:-1], [name])]

    replace_weights(model.graph, coded)
    save_graph(model, target)


def _quantised(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the shape of ``values``, and scales that they are multiplied with, one for each place along ``axis``."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST_CODE, 1).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


def _cosines(bundle: RetrievalBundle, other: RetrievalBundle) -> dict[str, float]:
    """Smallest cosine between the vectors of two bundles for some images and texts."""
    rng = np.random.default_rng(0)
    images = [
        resize_square(rng.integers(0, 256, (side, side, 3), np.uint8), _PROBE_SIDE)
        for side in (1, 2, 4, 8, 16, 32)
    ]
    first, second = DualEncoder(bundle), DualEncoder(other)
    return {
        "images": _smallest(first.encode_images(images), second.encode_images(images)),
        "texts": _smallest(first.encode_texts(_PROBE_TEXTS), second.encode_texts(_PROBE_TEXTS)),
    }


def _smallest(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return round(float((first * second).sum(axis=1).min()), 6)
