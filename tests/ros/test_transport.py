import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mca_perception.ros import transport

VARIABLES = (
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
    "FASTDDS_BUILTIN_TRANSPORTS",
)


@pytest.fixture(autouse=True)
def no_transport_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(transport.PROFILE_VARIABLE, "")  # restored afterwards, whatever is set meanwhile


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_users_choice_is_kept(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "mine")
    before = dict(os.environ)
    assert f"{variable}=mine" in transport.configure_transport()
    assert dict(os.environ) == before


def test_the_profile_is_selected_and_holds_large_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transport, "_NEEDED_SHARED_MEMORY", 0)
    assert "shared memory" in transport.configure_transport()
    profile = Path(os.environ[transport.PROFILE_VARIABLE])
    root = ElementTree.parse(profile).getroot()
    values = {element.tag.rpartition("}")[2]: element.text for element in root.iter()}
    assert int(values["segment_size"] or 0) == 128 << 20
    assert int(values["maxMessageSize"] or 0) > 2448 * 2048 * 3
    (writer,) = (element for element in root.iter() if element.tag.endswith("}data_writer"))
    assert writer.get("is_default_profile") == "true"
    assert (values["sec"], values["nanosec"]) == ("0", "100000000")


def test_no_type_lookup_runs(repository: Path, tmp_path: Path) -> None:
    """A process crashed in its thread while it ended."""
    pytest.importorskip("rclpy")
    threads = (
        "from pathlib import Path; print([p.read_text() for p in Path('/proc/self/task').glob('*/comm')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import rclpy; rclpy.init(); node = rclpy.create_node('threads'); {threads}"],
        env={
            **os.environ,
            transport.PROFILE_VARIABLE: str(repository / "config" / "fastdds.xml"),
            "ROS_LOG_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "dds.ev" in done.stdout
    assert "dds.tls" not in done.stdout


@pytest.mark.parametrize(("period", "complaint"), [("100000000", False), ("soon", True)])
def test_the_middleware_reads_the_profile(
    repository: Path, tmp_path: Path, period: str, complaint: bool
) -> None:
    """It complains on its log and goes on with its defaults when it cannot read one."""
    pytest.importorskip("rclpy")
    profile = tmp_path / "fastdds.xml"
    text = (repository / "config" / "fastdds.xml").read_text(encoding="utf-8")
    profile.write_text(text.replace("<nanosec>100000000<", f"<nanosec>{period}<"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import rclpy; rclpy.init(); rclpy.create_node('reads_the_profile')"],
        env={**os.environ, transport.PROFILE_VARIABLE: str(profile), "ROS_LOG_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ("XMLPARSER" in done.stdout + done.stderr) is complaint


def test_too_little_shared_memory_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_NEEDED_SHARED_MEMORY", 1 << 60)
    assert "--shm-size" in transport.configure_transport()
    assert not os.environ[transport.PROFILE_VARIABLE]


def test_malloc_is_tuned_or_left_alone() -> None:
    assert transport.tune_malloc() in (True, False)
