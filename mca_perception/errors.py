"""Errors caused by bad input.

Every message names the input, the limit it broke and the remedy. The command line prints it and exits with 2.
"""

__all__ = [
    "AccuracyError",
    "AdapterError",
    "BackboneError",
    "BundleError",
    "CalibrationError",
    "CameraError",
    "CheckpointError",
    "ContrastiveError",
    "DatasetError",
    "GalleryError",
    "InvalidImageError",
    "McaError",
    "PostError",
    "RecipeError",
    "RetrievalError",
    "SourceError",
    "TokenizerError",
]


class McaError(Exception):
    """Base of all errors that a user can put right."""


class AccuracyError(McaError):
    """A changed model loses more than is allowed against the one that it was made from."""


class InvalidImageError(McaError, ValueError):
    """An image has the wrong type, shape or size."""


class BackboneError(McaError, ValueError):
    """A backbone is unknown, lacks a mode, or got an input that it cannot take."""


class AdapterError(McaError, ValueError):
    """An adapter is unknown, does not fit its backbone, or its file cannot be used."""


class BundleError(McaError, ValueError):
    """A model bundle is missing, incomplete, altered or of another version."""


class CalibrationError(McaError, ValueError):
    """Held-out data does not suffice for a promise, or a rate is out of range."""


class CameraError(McaError, ValueError):
    """A camera's calibration, or the pictures for one, cannot be used."""


class CheckpointError(McaError, ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


def error_text(error: Exception) -> str:
    """What to tell a user: our own errors say it themselves, others need their kind."""
    return str(error) if isinstance(error, McaError) else f"{type(error).__name__}: {error}"


class ContrastiveError(McaError, ValueError):
    """Embeddings, labels or settings do not fit a contrastive loss or an embedding measure."""


class GalleryError(McaError, ValueError):
    """A gallery, a product id or an embedding cannot be used."""


class DatasetError(McaError, ValueError):
    """A data set or one of its files cannot be read."""


class PostError(McaError, ValueError):
    """A post has nothing that a crisis model could read."""


class RecipeError(McaError, ValueError):
    """A training recipe is not valid."""


class RetrievalError(McaError, ValueError):
    """A retrieval store, a query or an answer cannot be used or made."""


class SourceError(McaError, ValueError):
    """An image source (folder, video, camera, bag) cannot be opened or read."""


class TokenizerError(McaError, ValueError):
    """A tokenizer's model cannot be used, or a text or a length cannot be encoded."""
