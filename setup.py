"""Makes the repository root an ament_python package; all metadata stands in pyproject.toml.

`colcon build` needs what makes a ROS package (index marker, package.xml, launch files, parameters, models) in
`share/mca_perception`, and a pip install carries it too. An editable install does not: it reads these files
from the source tree, where a copy could only grow stale.
"""

import sys
from pathlib import Path

from setuptools import setup

SHARE = Path("share/mca_perception")
MARKER = Path("share/ament_index/resource_index/packages")
FOLDERS = ("launch", "config", "models", "recipes", "calibration")


def data_files() -> list[tuple[str, list[str]]]:
    """List (destination below the prefix, files) for everything that is not Python."""
    files = {MARKER: ["resource/mca_perception"], SHARE: ["package.xml"]}
    for folder in FOLDERS:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                files.setdefault(SHARE / path.parent, []).append(str(path))
    return [(str(destination), sources) for destination, sources in files.items()]


setup(
    python_requires=">=3.10",
    license="Apache-2.0",
    data_files=[] if "editable_wheel" in sys.argv else data_files(),
)
