"""Sets up `.venv` for a purpose: python3 scripts/bootstrap demo|test|setup|colcon.

Every finished step leaves a key in `.venv/mca-setup.json`, made from what the step depends on. A step whose
key still fits is skipped, so a second run touches neither pip nor the network.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (this file is what tells users of an older one)
    sys.exit(
        f"error: Python {sys.version_info[0]}.{sys.version_info[1]} is too old, 3.10 or newer is needed.\n"
        "  Name another one: make demo PYTHON=python3.12"
    )

from pathlib import Path

from progress import SetupError
from steps import PROFILES, Setup


def main() -> int:
    """Run the set-up; returns the exit code."""
    if len(sys.argv) != 2 or sys.argv[1] not in PROFILES:
        print(f"usage: python3 scripts/bootstrap {{{'|'.join(PROFILES)}}}", file=sys.stderr)
        return 2
    try:
        setup = Setup(Path(__file__).resolve().parents[2], sys.argv[1])
        setup.run()
        if sys.argv[1] == "colcon":
            setup.build_workspace()
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nerror: interrupted; run the same command to go on, finished steps are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
