"""The bundle of a dual encoder: one graph for images, one for token ids, and the vocabulary that makes the ids.

The two sides have fingerprints of their own. A store of image vectors belongs to the image side alone, so that a text
side that is trained further (specification of retrieval, section 0, step 3) searches the same store.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.manifest import BackboneSpec, CommonManifest, Preprocessing
from mca_perception.errors import BundleError

__all__ = [
    "IMAGE_GRAPH",
    "TEXT_GRAPH",
    "TOKENIZER_VARIABLE",
    "RetrievalBundle",
    "RetrievalManifest",
    "RetrievalSpec",
    "TokenizerSpec",
]

IMAGE_GRAPH, TEXT_GRAPH = "image", "text"
TOKENIZER_VARIABLE = "MCA_TOKENIZER"
"""Environment variable that names the vocabulary of bundles that come without one."""
_FINGERPRINT_LENGTH = 16


class TokenizerSpec(BaseModel):
    """The SentencePiece model that the text side was trained with; ``file`` is its name in the bundle, if there."""

    model_config = ConfigDict(extra="allow", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file: str | None = None


class RetrievalSpec(BaseModel):
    """How images and texts become the inputs of the graphs, and the width of the vectors.

    ``image_size`` is the side in pixels of the square that an image is resized to, ``text_length`` the longest text in
    tokens, ``logit_scale`` the learned factor on cosines in the training loss.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    image_size: int = Field(gt=0, le=2048)
    text_length: int = Field(ge=3, le=1022)
    embedding_dim: int = Field(gt=0, le=8192)
    logit_scale: float = Field(gt=0)
    tokenizer: TokenizerSpec


class RetrievalManifest(CommonManifest):
    """Contents of ``manifest.json`` of a dual encoder."""

    backbone: BackboneSpec
    preprocessing: Preprocessing
    retrieval: RetrievalSpec


class RetrievalBundle(Bundle):
    """A bundle whose graphs ``image`` and ``text`` give vectors of length 1 to be compared by their dot product."""

    manifest_type = RetrievalManifest
    manifest: RetrievalManifest

    def settings(self) -> dict[str, Any]:
        """Preprocessing, and what of the retrieval section changes vectors."""
        return {
            "preprocessing": self.manifest.preprocessing.model_dump(mode="json"),
            "retrieval": self.manifest.retrieval.model_dump(mode="json", exclude={"logit_scale"}),
        }

    @property
    def image_fingerprint(self) -> str:
        """What the image side computes, as 16 hex digits."""
        preprocessing = self.manifest.preprocessing.model_dump(mode="json")
        return self._side(IMAGE_GRAPH, [preprocessing, self.manifest.retrieval.image_size])

    @property
    def text_fingerprint(self) -> str:
        """What the text side computes, as 16 hex digits."""
        section = self.manifest.retrieval
        return self._side(TEXT_GRAPH, [section.text_length, section.tokenizer.sha256])

    def _side(self, graph: str, settings: list[Any]) -> str:
        self.path_of(graph)
        content = self.manifest.files[self.manifest.graphs[graph].file].sha256
        canonical = json.dumps([content, *settings], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:_FINGERPRINT_LENGTH]

    def tokenizer_file(self, given: str | os.PathLike[str] | None = None) -> Path:
        """Where the vocabulary lies: the file given, else the bundle's own, else what ``MCA_TOKENIZER`` names.

        Raises:
            BundleError: there is none, or it is not the one that the model was trained with.
        """
        spec = self.manifest.retrieval.tokenizer
        if given is None and spec.file is not None:
            if spec.file not in self.manifest.files or self.manifest.files[spec.file].sha256 != spec.sha256:
                raise BundleError(
                    f"{self.path}: 'files' does not list the tokenizer {spec.file!r}; export it again"
                )
            return self.path / spec.file
        named = given if given is not None else os.environ.get(TOKENIZER_VARIABLE)
        if not named:
            raise BundleError(
                f"{self.path} comes without its vocabulary: name the SentencePiece model with --tokenizer or in the "
                f"environment variable {TOKENIZER_VARIABLE}"
            )
        path = Path(named)
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BundleError(
                f"tokenizer {path} cannot be read ({error.strerror}); check the path"
            ) from error
        if found != spec.sha256:
            raise BundleError(
                f"tokenizer {path} is not the one that {self.path} was trained with (SHA-256 {spec.sha256[:12]}...); "
                "name that file"
            )
        return path
