"""Identities of objects that last over frames."""

from mca_perception.tracking.byte_track import ByteTracker

__all__ = ["ByteTracker"]
