"""Resident memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """What the process holds now."""
    return _field("VmRSS:")


def peak_bytes() -> int:
    """The most that it has held, or has since :func:`reset_peak`."""
    # Not getrusage: a child starts with its parent's peak there.
    return _field("VmHWM:")


def reset_peak() -> None:
    """Let the kernel count the peak anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _field(name: str) -> int:
    return 1024 * int(STATUS.read_text(encoding="ascii").partition(name)[2].split()[0])
