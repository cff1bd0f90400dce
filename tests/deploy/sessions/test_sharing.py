import pytest

from mca_perception.deploy.sessions import sharing
from mca_perception.deploy.sessions.sharing import threads_of_each, usable_cores


@pytest.mark.parametrize(
    ("cores", "runs", "threads"), [(1, 1, None), (2, 2, 1), (8, 1, None), (8, 3, 2), (2, 16, 1)]
)
def test_cores_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, runs: int, threads: int | None
) -> None:
    monkeypatch.setattr(sharing, "usable_cores", lambda: cores)
    assert threads_of_each(runs) == threads
    assert threads_of_each(runs, 5) == 5


def test_only_the_cores_that_the_process_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing.os, "sched_getaffinity", lambda _: {1, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(sharing.os, "sched_getaffinity")
    monkeypatch.setattr(sharing.os, "cpu_count", lambda: None)
    assert usable_cores() == 1
