"""What the benchmarks of `mca bench` share: settings, results, and why a candidate is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.cli.bench_measure import nothing
from mca_perception.cli.bench_peers import why_not as why_no_peer
from mca_perception.cli.bench_power import PowerMeter
from mca_perception.deploy.sessions import BACKENDS, why_not
from mca_perception.errors import McaError

__all__ = ["SEED", "BenchSettings", "Outcome", "digest", "refusals"]

SEED = 20_000


@dataclass(frozen=True)
class BenchSettings:
    """How a benchmark is run.

    Attributes:
        runs: turns of every candidate.
        threads: of every candidate.
        at_once: images that are worked on at the same time in a second pass; 1 leaves it out.
        between: called before every round.
        meter: of the power, by candidate.
    """

    runs: int
    threads: int
    at_once: int = 1
    between: Callable[[], None] = nothing
    meter: PowerMeter | None = None


@dataclass(frozen=True)
class Outcome:
    """Figures by case and candidate, what was left out and why, a hash of the input, and what else is to be known."""

    cases: dict[str, dict[str, dict[str, float]]]
    left_out: dict[str, str]
    input_sha256: str
    facts: dict[str, float] = field(default_factory=dict)


def refusals(sessions: list[str], against: list[str], peers: tuple[str, ...]) -> dict[str, str]:
    """Reasons by candidate that cannot run here.

    Raises:
        McaError: a candidate is unknown.
    """
    for name in sessions:
        if name not in BACKENDS:
            raise McaError(f"there is no session {name!r}; choose from {', '.join(BACKENDS)}")
    for name in against:
        if name not in peers:
            raise McaError(f"there is no peer {name!r} for this benchmark; choose from {', '.join(peers)}")
    reasons = {name: why_not(name) for name in sessions}
    reasons |= {name: why_no_peer(name) for name in against}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def digest(arrays: list[NDArray[Any]]) -> str:
    """SHA-256 of the bytes of some arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
