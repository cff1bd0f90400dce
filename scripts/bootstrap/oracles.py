"""Reference implementations that tests compare with, as far as pip alone does not get them to work.

torchscale, the published code of BEiT-3, asks for releases of its dependencies that have long gone, and works with
today's. torchvision's wheel is a CUDA build, which beside a CPU build of torch lacks three libraries: see
tests/support/torchvision_cpu.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

WITHOUT_THEIR_REQUIREMENTS = ("torchscale", "fairscale")
CUDA_RUNTIME = "nvidia-cuda-runtime"
CHECK = "import torchvision.ops"
SOURCES = Path("tests", "support", "torchvision_cpu")
PACKAGE = "mca_torchvision_cpu"
HOOK = f"{PACKAGE}.pth"


def remove_torchvision_stubs(site: Path) -> None:
    """Take the stubs out of a site-packages folder again, where they are in it."""
    (site / HOOK).unlink(missing_ok=True)
    shutil.rmtree(site / PACKAGE, ignore_errors=True)


def install_torchvision_stubs(site: Path, sources: Path, compiler: str, run: Callable[..., None]) -> None:
    """Compile the stubs into a site-packages folder, and let its Python load them when torchvision is imported.

    Args:
        site: the folder.
        sources: folder of the package and of its stub.c.
        compiler: path of a C or C++ compiler.
        run: runs a command, given a label and the command.

    Raises:
        SetupError: the compiler failed.
    """
    with tempfile.TemporaryDirectory(dir=site, prefix=".stubs-") as temporary:
        package = Path(temporary, PACKAGE)
        package.mkdir()
        shutil.copy(sources / "__init__.py", package)
        for library, source in (
            ("libc10_cuda.so", sources / "stub.c"),
            ("libtorch_cuda.so", Path("/dev/null")),
        ):
            options = ("-shared", "-fPIC", "-O1", f"-Wl,-soname,{library}", "-o", str(package / library))
            run(f"compiling {library}", compiler, *options, "-x", "c", str(source))
        package.replace(site / PACKAGE)
    (site / HOOK).write_text(f"import {PACKAGE}; {PACKAGE}.register()\n")
