"""Model bundles and the sessions that run their graphs."""

from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.deploy.manifest import Manifest
from mca_perception.deploy.session import OnnxSession, Session, open_sessions

__all__ = ["Manifest", "ModelBundle", "OnnxSession", "Session", "open_sessions", "write_bundle"]
