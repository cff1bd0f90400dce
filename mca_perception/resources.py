"""Files that come with the package but are not Python: models, launch files, parameters, recipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mca_perception.errors import McaError

PACKAGE = "mca_perception"


def _roots() -> Iterator[Path]:
    """Yield the places to look, nearest first: source tree, environment, ROS prefixes."""
    yield Path(__file__).resolve().parents[1]
    yield Path(sys.prefix, "share", PACKAGE)
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            yield Path(prefix, "share", PACKAGE)


def resource_path(name: str) -> Path:
    """Find a file or folder that is shipped with the package.

    Args:
        name: path relative to the repository root, such as `models/nano` or `config/fastdds.xml`.

    Returns:
        The absolute path.

    Raises:
        McaError: it is in none of the places where the package may be installed.
    """
    looked_in = [root / name for root in _roots()]
    for path in looked_in:
        if path.exists():
            return path
    places = ", ".join(str(path) for path in looked_in)
    raise McaError(f"{name} is not installed (looked for {places}): install again, or name your own")


def cache_folder(name: str) -> Path:
    """Folder below the user's cache for what can be made again; it need not exist.

    Args:
        name: what is kept there.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mca_perception", name)
