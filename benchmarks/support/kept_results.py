"""Results that are kept, so that a benchmark that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Result of an earlier run, or of this one."""
    if not path.is_file():
        result = make()
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=2))
        part.replace(path)
    return dict(json.loads(path.read_text()))
