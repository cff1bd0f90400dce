"""Open the graphs of a bundle: one interface, whatever engine runs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.sessions.base import GraphSession, Session, SessionOptions
from mca_perception.deploy.sessions.onnx_runtime import OnnxSession
from mca_perception.deploy.sessions.selection import AUTOMATIC, Choice, open_graphs
from mca_perception.errors import BundleError

__all__ = ["GraphSession", "OnnxSession", "Session", "SessionOptions", "Sessions", "open_sessions"]


class Sessions(dict[str, Session]):
    """Sessions by graph.

    Attributes:
        choice: the back end, and why it and not another.
    """

    def __init__(self, choice: Choice, sessions: Mapping[str, Session]) -> None:
        super().__init__(sessions)
        self.choice = choice


def open_sessions(
    bundle: Bundle,
    *,
    graphs: Collection[str] | None = None,
    session: str = AUTOMATIC,
    providers: Sequence[str] | None = None,
    options: SessionOptions | None = None,
) -> Sessions:
    """Open one session per graph of a bundle.

    Args:
        bundle: an opened bundle.
        graphs: open these alone, as far as the bundle has them; all by default.
        session: back end: ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``openvino``, ``tensorrt``, ``torch``,
            ``torch-package``, ``triton``, or ``auto`` for the best that works here.
        providers: ONNX Runtime's execution providers, best first; they take the place of ``session``.
        options: of the back end.

    Raises:
        BundleError: the back end is unknown or cannot be used here, a graph cannot be loaded, or its tensor names
            differ from the manifest; or both ``session`` and ``providers`` are given.
    """
    held = bundle.manifest.graphs
    names = [name for name in held if graphs is None or name in graphs]
    settings = options or SessionOptions()
    if providers:
        if session != AUTOMATIC:
            raise BundleError(
                f"session {session!r} and providers {list(providers)} exclude each other; give one of them"
            )
        settings = replace(settings, providers=tuple(providers))
        session = "onnxruntime"
    return Sessions(*open_graphs(bundle, names, session, settings))
