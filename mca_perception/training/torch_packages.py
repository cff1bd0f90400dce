"""Graphs of a bundle as packages that torch compiled beforehand (AOTInductor): a robot that starts compiles nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package
from torch._inductor.package.package import load_package
from torch.export import Dim, export

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.engine_cache import EngineCache, EngineKey, file_digest, processor
from mca_perception.deploy.manifest import GraphSpec
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.deploy.sessions.shape_profiles import Profile, profiles_of
from mca_perception.errors import BundleError
from mca_perception.training.torch_sessions import built_module, why_not

__all__ = ["PackageSession", "open_graph", "why_not"]

_log = logging.getLogger(__name__)


class PackageSession(GraphSession):
    """A package for each profile of a graph. Packages are code: they come from the user's cache, not from a bundle."""

    backend: ClassVar[str] = "torch-package"

    def __init__(
        self,
        spec: GraphSpec,
        packages: Sequence[tuple[Profile, bytes]],
        *,
        threads: int | None = None,
        parallel: int = 1,
    ) -> None:
        """Load packages.

        Args:
            spec: inputs and outputs.
            packages: the shapes that each was compiled for, and what :func:`compile_package` wrote.
            threads: of one run on a CPU; torch's own number when not given.
            parallel: runs at the same time; further ones wait for these.
        """
        gpu = torch.cuda.is_available()
        self.device = torch.cuda.get_device_name() if gpu else "CPU"
        self._torch_device = torch.device("cuda" if gpu else "cpu")
        self.inputs, self.outputs = tuple(spec.inputs), tuple(spec.outputs)
        self._threads = threads
        self._calls = [(profile, _load(content, parallel)) for profile, content in packages]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph; see :meth:`.GraphSession.run`.

        Raises:
            ValueError: no package was compiled for these shapes, or the names are not the graph's.
        """
        arrays = self._contiguous(inputs)
        shapes = {name: array.shape for name, array in arrays.items()}
        call = next((call for profile, call in self._calls if profile.holds(shapes)), None)
        if call is None:
            raise ValueError(
                f"no package was compiled for {shapes}, only for {[p.as_lists() for p, _ in self._calls]}; "
                "choose the session torch for other shapes"
            )
        if self._threads is not None:  # belongs to the calling thread
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            found = call(*(torch.from_numpy(array).to(self._torch_device) for array in arrays.values()))
        found = (found,) if isinstance(found, Tensor) else found
        return {name: part.cpu().numpy() for name, part in zip(self.output_names, found, strict=True)}


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> PackageSession:
    """Take the packages of a graph from the cache, or compile them, which takes a minute each.

    Raises:
        BundleError: see :func:`.built_module`; or a package is not in the cache and may not or cannot be compiled.
    """
    cache = options.cache or EngineCache()
    module = built_module(bundle, graph)
    path = bundle.path_of(graph)
    gpu = torch.cuda.is_available()
    packages = []
    for profile in profiles_of(bundle, graph):
        key = EngineKey(
            model=file_digest(path),
            builder=f"torch {torch.__version__} AOTInductor",
            device=torch.cuda.get_device_name() if gpu else processor(),
            precision="float32",
            profile=json.dumps(profile.as_lists()),
        )
        content = cache.get(key)
        if content is None:
            _check_compiler(path, cache, options)
            content = cache.get_or_build(
                key, partial(compile_package, module, profile), on_state=options.on_state
            )
        packages.append((profile, content))
    spec = bundle.manifest.graphs[graph]
    return PackageSession(spec, packages, threads=options.threads, parallel=options.parallel)


def compile_package(module: nn.Module, profile: Profile, target: str) -> None:
    """Compile a module for the shapes of a profile, with any batch between its ends.

    Args:
        module: in evaluation mode; called with the inputs in the order of the profile.
        profile: shapes; sides other than the first are fixed.
        target: file to write.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.eval().to(device)
    lowest, _, highest = next(iter(profile.shapes.values()))
    sides = {0: Dim("N", min=lowest[0], max=highest[0])} if lowest != highest else {}
    examples = tuple(torch.zeros(typical, device=device) for _, typical, _ in profile.shapes.values())
    with torch.no_grad():
        program = export(module, examples, dynamic_shapes=tuple(dict(sides) for _ in examples))
        # The compiler wants its own file name extension.
        made = aoti_compile_and_package(program, package_path=f"{target}.pt2")
    Path(made).rename(target)


def _check_compiler(path: Path, cache: EngineCache, options: SessionOptions) -> None:
    compiler = os.environ.get("CXX", "g++")
    if not options.build:
        raise BundleError(
            f"no package of {path.name} in {cache.folder}; open it with SessionOptions(build=True)"
        )
    if shutil.which(compiler) is None:
        raise BundleError(
            f"no package of {path.name} in {cache.folder}, and {compiler}, which would compile it, is not installed; "
            "install it, or choose the session torch"
        )


def _load(content: bytes, parallel: int) -> Any:
    with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
        file.write(content)
        file.flush()
        return load_package(file.name, num_runners=parallel)
