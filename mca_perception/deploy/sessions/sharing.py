"""How runs that happen at the same time share the cores of a processor.

One frame on all cores gains little from the second one: its steps are short, and at the end of each the threads wait
for each other. Frames with a core each do not wait; docs/deploy.md has the measurements.
"""

from __future__ import annotations

import os

__all__ = ["threads_of_each", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_each(runs: int, wanted: int = 0) -> int | None:
    """Threads of each run; 0 shares the cores out, and None is what a back end takes by itself: one per core."""
    if wanted:
        return wanted
    return None if runs == 1 else max(1, usable_cores() // runs)
