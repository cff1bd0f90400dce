"""Lets a CUDA build of torchvision import beside a CPU build of torch, in test environments only.

That build links three libraries which a CPU build of torch does not bring, although nothing on the CPU path calls
them. The set-up copies this package into the site-packages of the environment, compiles ``stub.c`` to two of the
libraries beside it, installs the third (the CUDA runtime) with pip, and adds a ``.pth`` file that imports this
package whenever the environment's Python starts. That import only registers a finder; the libraries are loaded
when torchvision is looked for. See scripts/bootstrap/oracles.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

STUBS = ("libc10_cuda.so", "libtorch_cuda.so")
CUDA_RUNTIME = "nvidia/cu13/lib/libcudart.so.13"


class TorchvisionFinder:
    """Loads the libraries when torchvision is looked for, and leaves the finding itself to Python."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec of torchvision, after loading what it links; None for every other module."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        torch = PathFinder.find_spec("torch", path)
        if spec is not None and torch is not None and torch.origin is not None:
            load_libraries(torch.origin)
        return spec


def load_libraries(torch_origin: str) -> None:
    """Load the CUDA runtime and the stubs, unless torch has its own.

    Args:
        torch_origin: path of ``torch/__init__.py``.
    """
    import ctypes
    from pathlib import Path

    here = Path(__file__).parent
    if (Path(torch_origin).parent / "lib" / STUBS[0]).exists():
        return
    for library in (here.parent / CUDA_RUNTIME, *(here / stub for stub in STUBS)):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def register() -> None:
    """Put the finder in front of Python's own, once."""
    if TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)
