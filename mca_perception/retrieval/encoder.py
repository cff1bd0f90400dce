"""Images and texts to vectors, in ONNX Runtime; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.datasets.images import resize_square
from mca_perception.deploy.session import OnnxSession
from mca_perception.errors import BundleError
from mca_perception.retrieval.bundle import IMAGE_GRAPH, TEXT_GRAPH, RetrievalBundle

__all__ = ["MAX_BATCH", "DualEncoder", "ImageEncoder", "TextEncoder"]

MAX_BATCH = 64
"""Images or texts that go through a graph at once; longer sequences are split."""
_INPUTS = {IMAGE_GRAPH: {"images"}, TEXT_GRAPH: {"text_ids", "padding_mask"}}


class ImageEncoder(Protocol):
    """What an index needs of a model.

    Attributes:
        image_fingerprint: of the image side, 16 hex digits.
        dimension: width of the vectors.
    """

    image_fingerprint: str
    dimension: int

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors float32 ``[N, D]`` of length 1 of images uint8 ``[H, W, 3]`` RGB."""
        ...


class TextEncoder(Protocol):
    """What a search needs of a model.

    Attributes:
        image_fingerprint: of the image side whose vectors the texts can be compared with.
        text_fingerprint: of the text side.
        name: ``name@fingerprint``, as in every answer.
    """

    image_fingerprint: str
    text_fingerprint: str
    name: str

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 ``[N, D]`` of length 1."""
        ...


class DualEncoder:
    """Both sides of a bundle; may be called from several threads. A side is loaded when it is first used.

    Attributes:
        bundle: the bundle.
        name: ``name@fingerprint``.
        image_fingerprint: of the image side.
        text_fingerprint: of the text side.
        dimension: width of the vectors.
    """

    def __init__(
        self,
        bundle: RetrievalBundle,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        """Prepare an opened bundle.

        Args:
            bundle: the bundle.
            tokenizer: the vocabulary, where the bundle comes without (see :meth:`RetrievalBundle.tokenizer_file`).
            threads: of one operator in ONNX Runtime; by default one per core.
        """
        self.bundle = bundle
        self.name = f"{bundle.manifest.name}@{bundle.fingerprint}"
        self.image_fingerprint = bundle.image_fingerprint
        self.text_fingerprint = bundle.text_fingerprint
        self.dimension = bundle.manifest.retrieval.embedding_dim
        self._given_tokenizer = tokenizer
        self._threads = threads
        self._sessions: dict[str, OnnxSession] = {}
        self._tokenizer: BEiT3Tokenizer | None = None

    @classmethod
    def from_bundle(cls, path: str | os.PathLike[str], **options: Any) -> DualEncoder:
        """Open a bundle; options as above.

        Raises:
            BundleError: it is missing, damaged, or of another kind.
        """
        return cls(RetrievalBundle.open(path), **options)

    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors float32 ``[N, D]`` of length 1 of images uint8 ``[H, W, 3]`` RGB of any sizes.

        Raises:
            BundleError: the graph cannot be loaded.
        """
        manifest, side = self.bundle.manifest, self.bundle.manifest.retrieval.image_size
        mean = np.array(manifest.preprocessing.mean, np.float32)[:, None, None] * 255
        factor = 1 / (np.array(manifest.preprocessing.std, np.float32)[:, None, None] * 255)
        session = self._session(IMAGE_GRAPH)
        parts = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, len(images), MAX_BATCH):
            squares = [resize_square(image, side) for image in images[start : start + MAX_BATCH]]
            batch = (np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32) - mean) * factor
            parts.append(self._vectors(session, {"images": batch}))
        return np.concatenate(parts)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 ``[N, D]`` of length 1 of texts; what is longer than the model reads is cut off.

        Raises:
            BundleError: the graph cannot be loaded, or its vocabulary is missing.
            TokenizerError: a text is not valid, or sentencepiece is not installed.
        """
        session, tokenizer = self._session(TEXT_GRAPH), self._open_tokenizer()
        parts = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, len(texts), MAX_BATCH):
            tokens = tokenizer.batch(
                list(texts[start : start + MAX_BATCH]), self.bundle.manifest.retrieval.text_length
            )
            parts.append(
                self._vectors(session, {"text_ids": tokens.ids, "padding_mask": tokens.padding_mask})
            )
        return np.concatenate(parts)

    def _vectors(self, session: OnnxSession, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = np.asarray(session.run(inputs)["embeddings"], np.float32)
        if rows.shape[1] != self.dimension:
            raise BundleError(
                f"{self.bundle.path}: a graph gives vectors of width {rows.shape[1]}, the manifest says "
                f"{self.dimension}; export the bundle again"
            )
        return rows

    def _session(self, graph: str) -> OnnxSession:
        if graph not in self._sessions:
            session = OnnxSession(self.bundle.path_of(graph), intra_op_threads=self._threads)
            if set(session.input_names) != _INPUTS[graph]:
                raise BundleError(
                    f"{self.bundle.path}: graph {graph} takes {', '.join(session.input_names)}, not "
                    f"{' and '.join(sorted(_INPUTS[graph]))}; export the bundle again"
                )
            self._sessions[graph] = session
        return self._sessions[graph]

    def _open_tokenizer(self) -> BEiT3Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = BEiT3Tokenizer(self.bundle.tokenizer_file(self._given_tokenizer))
        return self._tokenizer
