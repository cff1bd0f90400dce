"""The retrieval part of a training recipe and its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from mca_perception.pretraining.recipe import Objectives, PretrainingRecipe

__all__ = ["RetrievalPart", "RetrievalRecipe"]

RetrievalPart = Literal["all", "language", "text"]


class RetrievalRecipe(PretrainingRecipe):
    """Contrast of documents and images (specification of retrieval, section 3); further settings as in pre-training.

    ``trainable``: ``language`` for the language experts, text positions and language projection alone, so that the
    vectors of all images stay as they are; ``text`` for the word embeddings too, as a text side without pre-trained
    weights needs; ``all`` for both sides.

    ``image_vectors`` names a store made by ``mca retrieval index`` with the same image side. Training then reads no
    image: its vectors come from there. Augmentation of images has no effect with it, nor could it.

    ``summarise``: train on summaries of the documents instead of their beginnings.
    """

    objectives: Objectives = Objectives(itc=1.0)
    trainable: RetrievalPart = "language"  # type: ignore[assignment]  # other parts than in pre-training
    image_vectors: Path | None = None
    summarise: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> RetrievalRecipe:
        if self.objectives != Objectives(itc=1.0):
            raise ValueError("retrieval trains image-text contrast alone: leave objectives out")
        if self.image_vectors is not None and self.trainable == "all":
            raise ValueError(
                "image_vectors are those of a frozen image side: set trainable to language or text, or leave them out"
            )
        return self

    def check_modalities(self, modalities: tuple[str, ...]) -> None:
        """Refuse a backbone that does not have both sides.

        Raises:
            ValueError: a modality is missing.
        """
        if missing := sorted({"vision", "text"} - set(modalities)):
            raise ValueError(
                f"retrieval needs {' and '.join(missing)}: add it to backbone.modalities, now {list(modalities)}"
            )
