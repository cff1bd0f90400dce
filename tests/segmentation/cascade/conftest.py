"""The reference implementation that these tests compare with."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision with its detection models; skips where it cannot be imported beside the installed torch."""
    try:
        import torchvision
        import torchvision.models.detection
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"no usable torchvision: {error}")
    return torchvision
