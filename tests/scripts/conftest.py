"""Makes the modules of scripts/bootstrap importable, as they are for `python3 scripts/bootstrap`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bootstrap"))
