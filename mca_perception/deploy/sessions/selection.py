"""Which back end runs the graphs: one by name, or the best that works here, with the reasons against the others."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.sessions.base import GraphSession, SessionOptions
from mca_perception.errors import BundleError

__all__ = ["AUTOMATIC", "BACKENDS", "ORDER", "Choice", "choose", "open_graphs", "why_not"]

AUTOMATIC = "auto"

# Modules by name: what a back end needs is imported when it is asked for, and not by everybody.
_FOLDER = "mca_perception.deploy.sessions"
BACKENDS: Mapping[str, tuple[str, str, str]] = {
    "tensorrt": (f"{_FOLDER}.tensor_rt", "open_graph", "why_not"),
    "onnxruntime": (f"{_FOLDER}.onnx_runtime", "open_graph", "why_no_cpu"),
    "onnxruntime-cuda": (f"{_FOLDER}.onnx_runtime", "open_cuda", "why_no_cuda"),
    "onnxruntime-cpu": (f"{_FOLDER}.onnx_runtime", "open_cpu", "why_no_cpu"),
    "openvino": (f"{_FOLDER}.open_vino", "open_graph", "why_not"),
    "torch": ("mca_perception.training.torch_sessions", "open_graph", "why_not"),
    "torch-package": ("mca_perception.training.torch_packages", "open_graph", "why_not"),
    "triton": (f"{_FOLDER}.triton", "open_graph", "why_not"),
}
"""Module, opener and refusal of every back end, by the name that ``session=`` takes."""

ORDER = ("tensorrt", "onnxruntime-cuda", "openvino", "onnxruntime-cpu")
"""In which order they are tried when none is named; docs/deploy.md has the measurements behind it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """The back end in use, and why the ones that come before it are not.

    Attributes:
        name: of the back end.
        refused: reason by back end, those that were preferred to it.
    """

    name: str
    refused: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "; ".join([self.name, *(f"not {name}: {why}" for name, why in self.refused.items())])


def why_not(name: str) -> str | None:
    """Why a back end cannot be used on this machine; None when it can.

    Raises:
        BundleError: there is no back end of that name.
    """
    module, _, refusal = _entry(name)
    try:
        reason: str | None = getattr(import_module(module), refusal)()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    return reason


def choose() -> Choice:
    """The first back end of :data:`ORDER` that works on this machine, without opening anything."""
    refused: dict[str, str] = {}
    for name in ORDER:
        reason = why_not(name)
        if reason is None:
            return Choice(name, refused)
        refused[name] = reason
    raise AssertionError("ONNX Runtime on the CPU is always there")


def open_graphs(
    bundle: Bundle, graphs: Collection[str], session: str, options: SessionOptions
) -> tuple[Choice, dict[str, GraphSession]]:
    """Open graphs of a bundle in one back end.

    Args:
        bundle: an opened bundle.
        graphs: names of the graphs.
        session: a back end, or ``auto``: then one that cannot be used or cannot run these graphs is passed over.
        options: of the back ends.

    Returns:
        What was chosen, also logged, and the sessions by graph.

    Raises:
        BundleError: the back end is unknown, cannot be used here, or cannot run a graph.
    """
    if session != AUTOMATIC:
        reason = why_not(session)
        if reason is not None:
            raise BundleError(
                f"session {session!r} cannot be used: {reason}; or choose another of {_names()}"
            )
        return Choice(session), _open(session, bundle, graphs, options)
    # Nobody who leaves the choice open expects to wait for minutes.
    options = replace(options, build=False)
    refused: dict[str, str] = {}
    for name in ORDER:
        reason = why_not(name)
        if reason is None:
            try:
                sessions = _open(name, bundle, graphs, options)
            except BundleError as error:
                if name == ORDER[-1]:
                    raise
                reason = str(error)
            else:
                choice = Choice(name, refused)
                _log.info("sessions of %s: %s", bundle.path, choice)
                return choice, sessions
        refused[name] = reason
    raise AssertionError("the last back end is opened or its error raised")


def _open(
    name: str, bundle: Bundle, graphs: Collection[str], options: SessionOptions
) -> dict[str, GraphSession]:
    module, opener, _ = _entry(name)
    open_graph: Any = getattr(import_module(module), opener)
    sessions: dict[str, GraphSession] = {}
    for graph in graphs:
        session: GraphSession = open_graph(bundle, graph, options)
        spec = bundle.manifest.graphs[graph]
        declared = ({t.name for t in spec.inputs}, {t.name for t in spec.outputs})
        if declared != (set(session.input_names), set(session.output_names)):
            raise BundleError(
                f"{bundle.path}: graph {graph!r} has other inputs or outputs ({session.input_names}, "
                f"{session.output_names}) than the manifest names; export the bundle again"
            )
        sessions[graph] = session
    return sessions


def _entry(name: str) -> tuple[str, str, str]:
    if name not in BACKENDS:
        raise BundleError(f"there is no session {name!r}; choose one of {_names()}")
    return BACKENDS[name]


def _names() -> str:
    return ", ".join((AUTOMATIC, *BACKENDS))
