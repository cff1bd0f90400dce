import pytest

from mca_perception.deploy.sessions import sharing
from mca_perception.deploy.sessions.sharing import runs_at_once, threads_of_each, usable_cores


@pytest.mark.parametrize(
    ("cores", "wanted", "runs", "threads"),
    [
        (1, 0, 1, None),
        (2, 0, 2, 1),
        (8, 0, 2, 4),
        (2, 1, 1, None),
        (8, 3, 3, 2),
        (2, 16, 16, 1),
    ],
)
def test_cores_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, wanted: int, runs: int, threads: int | None
) -> None:
    monkeypatch.setattr(sharing, "usable_cores", lambda: cores)
    assert runs_at_once(wanted) == runs
    assert threads_of_each(runs) == threads
    assert threads_of_each(runs, 5) == 5


def test_this_machine_has_a_core() -> None:
    assert usable_cores() >= 1
