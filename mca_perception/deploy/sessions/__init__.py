"""Back ends that run the graphs of a bundle behind one interface."""

from mca_perception.deploy.sessions.base import Arrays, GraphSession, Session, SessionOptions
from mca_perception.deploy.sessions.selection import (
    AUTOMATIC,
    BACKENDS,
    ORDER,
    Choice,
    choose,
    open_graphs,
    why_not,
)

__all__ = [
    "AUTOMATIC",
    "BACKENDS",
    "ORDER",
    "Arrays",
    "Choice",
    "GraphSession",
    "Session",
    "SessionOptions",
    "choose",
    "open_graphs",
    "why_not",
]
