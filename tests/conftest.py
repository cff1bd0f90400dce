"""What all tests share: an isolated ROS domain, modest thread counts, and the shared data sets."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports rclpy or starts a node, so that child processes inherit it. Domains up to 101
# keep clear of the ports that Linux hands out; neighbouring process ids give test workers different domains.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 101)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the public data sets, named by MCA_SHARED_DATA; tests that need it are skipped without."""
    folder = Path(os.environ.get("MCA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}: set MCA_SHARED_DATA to their folder")
    return folder
