import os
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


def test_too_little_shared_memory_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_NEEDED_SHARED_MEMORY", 1 << 60)
    assert "--shm-size" in transport.configure_transport()
    assert not os.environ[transport.PROFILE_VARIABLE]


def test_malloc_is_tuned_or_left_alone() -> None:
    assert transport.tune_malloc() in (True, False)
