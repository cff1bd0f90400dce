"""Which models of other libraries can be built on this machine."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def buildable(names: list[str], module: str, needs: Callable[[str], bool]) -> list[str]:
    """Leave out, and say so, the models that need a module which does not load.

    Args:
        names: of models.
        module: of torchvision, which has to fit the installed torch.
        needs: whether a model needs it.
    """
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        left_out = [name for name in names if needs(name)]
        if left_out:
            print(f"{', '.join(left_out)} left out: {error}")
        return [name for name in names if name not in left_out]
    return names
