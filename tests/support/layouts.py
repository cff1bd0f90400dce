"""What layouts for Foxglove name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["names", "panels", "read"]


def read(repository: Path, launch: str) -> Any:
    return json.loads((repository / "config" / "foxglove" / f"{launch}.json").read_text())


def panels(layout: Any) -> list[str]:
    """Panels in the order in which they are arranged."""
    if isinstance(layout, str):
        return [layout]
    return [*panels(layout["first"]), *panels(layout["second"])]


def names(layout: Any) -> set[str]:
    """Topics and services."""
    return set(re.findall(r'"(/[a-z_0-9/]+)', json.dumps(layout)))
