"""The libraries that other backbones come from; none is needed for BEiT-3."""

from __future__ import annotations

import importlib
from typing import Any

from mca_perception.errors import BackboneError


def import_library(name: str) -> Any:
    """Import a library that the extra `backbones` brings.

    Raises:
        BackboneError: it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BackboneError(
            f"{name} backbones need {error.name}: pip install -c constraints.txt -e '.[backbones]'"
        ) from error
