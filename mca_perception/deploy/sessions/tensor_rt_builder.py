"""Builds TensorRT engines: parse, profiles, timing cache, progress, and errors in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mca_perception.deploy.sessions.shape_profiles import Profile
from mca_perception.errors import BundleError

__all__ = ["WORKSPACE_BYTES", "build_engine", "logger_of"]

WORKSPACE_BYTES = 4 << 30
"""Most GPU memory that a single layer may use while it runs."""


def build_engine(
    path: Path,
    profiles: Sequence[Profile],
    timing_cache: Path,
    *,
    on_state: Callable[[str], None],
    workspace: int = WORKSPACE_BYTES,
) -> bytes:
    """Build the engine of a graph for this GPU.

    Args:
        path: the ``.onnx`` file.
        profiles: shapes to build for.
        timing_cache: file with measurements of earlier builds; read if there, and written.
        on_state: told how far it is.
        workspace: largest scratch memory in bytes.

    Returns:
        The serialised engine.

    Raises:
        BundleError: the graph cannot be parsed, a profile is refused, or no engine can be built, for lack of memory for
            instance.
    """
    import tensorrt

    logger = logger_of(tensorrt)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(path)):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BundleError(
            f"TensorRT {tensorrt.__version__} cannot parse {path}: {reasons or 'no reason given'}; export it again"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, workspace)
    config.progress_monitor = _monitor(tensorrt, on_state)
    timings = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    # Measurements of another TensorRT or GPU are ignored rather than refused.
    config.set_timing_cache(timings, ignore_mismatch=False)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (low, typical, high) in shapes.shapes.items():
            profile.set_shape(name, low, typical, high)
        if config.add_optimization_profile(profile) < 0:
            raise BundleError(f"TensorRT refuses shapes {shapes.as_lists()} for {path}; export it again")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(
            f"TensorRT cannot build an engine of {path}: {'; '.join(logger.problems) or 'no reason given'}. If memory "
            "ran out, stop what else uses the GPU, or build on a larger one of the same model"
        )
    _store(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def logger_of(tensorrt: Any) -> Any:
    """A logger that keeps errors for messages, in ``problems``."""

    class Logger(tensorrt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.problems: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (tensorrt.ILogger.Severity.ERROR, tensorrt.ILogger.Severity.INTERNAL_ERROR):
                self.problems.append(msg)

    return Logger()


def _monitor(tensorrt: Any, on_state: Callable[[str], None]) -> Any:
    """Tells every tenth of a phase, so that minutes of building do not look like a crash."""

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = max(1, self._steps.get(phase_name, 1))
            if (10 * step) // steps != (10 * (step - 1)) // steps:
                on_state(f"building: {phase_name} {100 * step // steps} %")
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _store(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
