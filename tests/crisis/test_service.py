"""The service's core: batches, caches, ranking, refusals, failures, drift."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import wait

import pytest

from mca_perception.crisis.answers import KnownAnswers, content_key
from mca_perception.crisis.drift import DriftWatch
from mca_perception.crisis.posts import CrisisReport, LabelScore, Post, priority_level
from mca_perception.crisis.ranking import RankedReports
from mca_perception.crisis.service import CrisisService, ServiceSettings
from mca_perception.errors import PostError

TIMEOUT = 60


def report(
    priority: float, post: Post | None = None, shares: tuple[float, float] = (0.5, 0.5)
) -> CrisisReport:
    post = post or Post("x")
    return CrisisReport(
        post_id=post.post_id,
        event_id=post.event_id,
        informative=LabelScore("informative", 0.9),
        humanitarian=LabelScore("a", shares[0]),
        humanitarian_scores={"a": shares[0], "b": shares[1]},
        priority_score=priority,
        priority_level=priority_level(priority),
        alert=priority >= 0.7,
        uncalibrated=True,
        modalities_used=("text",),
        modal_agreement=None,
        warnings=(),
        model="m@0",
        label_version="1",
        model_ms=0.1,
    )


class Recorder:
    """Answers by the number in the text; remembers the batches, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def classify(self, posts: Sequence[Post]) -> list[CrisisReport | PostError]:
        self.entered.set()
        assert self.open.wait(TIMEOUT)
        if self.error is not None:
            raise self.error
        self.batches.append([post.text for post in posts])
        return [
            report(float(post.text), post) if post.text else PostError("the post is empty") for post in posts
        ]


def test_posts_are_answered_in_batches() -> None:
    model = Recorder()
    model.open.clear()
    with CrisisService(model, ServiceSettings(batch_size=4, batch_seconds=0.01)) as service:
        first = service.submit(Post("0.9"))
        assert model.entered.wait(TIMEOUT)
        rest = [service.submit(Post(f"0.{i}", event_id="e")) for i in range(1, 9)]
        model.open.set()
        wait([first, *rest], TIMEOUT)
    assert [answer.result().priority_score for answer in rest] == [i / 10 for i in range(1, 9)]
    assert [len(batch) for batch in model.batches] == [1, 4, 4]
    assert [r.priority_score for r in service.ranked.top("e", 3)] == [0.8, 0.7, 0.6]
    status = service.status()
    assert (status.answered, status.batches, status.refused, status.waiting) == (9, 3, 0, 0)


def test_known_posts_are_answered_from_the_cache() -> None:
    model = Recorder()
    with CrisisService(model) as service:
        one = service.classify(Post("0.5", post_id="1", event_id="e"), TIMEOUT)
        again = service.classify(Post("0.5", post_id="1", event_id="e"), TIMEOUT)
        retweet = service.classify(Post("RT @someone: 0.5 https://t.co/x", post_id="2"), TIMEOUT)
        changed = service.classify(Post("0.8", post_id="1"), TIMEOUT)
    assert [answer.cached for answer in (one, again, retweet, changed)] == [False, True, True, False]
    assert (retweet.post_id, retweet.priority_score, changed.priority_score) == ("2", 0.5, 0.8)
    assert model.batches == [["0.5"], ["0.8"]]
    assert service.status().cached == 2


def test_copies_in_one_batch_go_through_the_model_once() -> None:
    model = Recorder()
    model.open.clear()
    with CrisisService(model) as service:
        first = service.submit(Post("0.1"))
        assert model.entered.wait(TIMEOUT)
        copies = [
            service.submit(Post(text, post_id=i))
            for text, i in (("0.2", "7"), ("0.2", "7"), ("RT @a: 0.2", "8"))
        ]
        empty = [service.submit(Post("", post_id=i)) for i in "ab"]
        model.open.set()
        wait([first, *copies, *empty], TIMEOUT)
    assert model.batches == [["0.1"], ["0.2", ""]]
    reports = [answer.result() for answer in copies]
    assert [report.cached for report in reports] == [False, True, True]
    assert [report.post_id for report in reports] == ["7", "7", "8"]
    assert {report.priority_score for report in reports} == {0.2}
    assert all(isinstance(answer.exception(), PostError) for answer in empty)
    assert (service.status().cached, service.status().refused) == (2, 2)


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    model = Recorder()
    model.open.clear()
    with CrisisService(model, ServiceSettings(batch_size=1, queue_size=2)) as service:
        first = service.submit(Post("0.1"))
        assert model.entered.wait(TIMEOUT)
        accepted = [service.submit(Post(f"0.{i}")) for i in (2, 3)]
        with pytest.raises(PostError, match="2 posts are waiting already"):
            service.classify(Post("0.4"), TIMEOUT)
        assert service.status().degraded == "the queue is full"
        model.open.set()
        wait([first, *accepted], TIMEOUT)
        assert service.classify(Post("0.4"), TIMEOUT).priority_score == 0.4
    assert [answer.result().priority_score for answer in (first, *accepted)] == [0.1, 0.2, 0.3]


def test_posts_that_are_too_large_to_wait_are_refused() -> None:
    model = Recorder()
    model.open.clear()
    with CrisisService(model, ServiceSettings(queue_bytes=100)) as service:
        first = service.submit(Post("0.1", (bytes(90),)))
        assert model.entered.wait(TIMEOUT)
        second = service.submit(Post("0.2", (bytes(90),)))
        with pytest.raises(PostError, match=r"this one of 93 they would exceed 100"):
            service.classify(Post("0.3", (bytes(90),)), TIMEOUT)
        with pytest.raises(PostError, match="at most 256 characters"):
            service.classify(Post("0.4", event_id="e" * 257), TIMEOUT)
        model.open.set()
        wait([first, second], TIMEOUT)
        assert service.classify(Post("0.3", (bytes(90),)), TIMEOUT).priority_score == 0.3
    assert service.status().refused == 2


def test_a_failing_model_is_said_aloud_and_recovered_from() -> None:
    model = Recorder()
    model.error = RuntimeError("out of memory")
    with CrisisService(model) as service:
        with pytest.raises(PostError, match=r"the model failed .*out of memory"):
            service.classify(Post("0.1"), TIMEOUT)
        assert "out of memory" in service.status().degraded
        model.error = None
        assert service.classify(Post("0.1"), TIMEOUT).priority_score == 0.1
        assert service.status().degraded == ""
    assert service.status().failed == 1


def test_unreadable_posts_do_not_disturb_others() -> None:
    model = Recorder()
    model.open.clear()
    with CrisisService(model) as service:
        answers = [service.submit(Post(text)) for text in ("0.1", "", "0.2")]
        model.open.set()
        wait(answers, TIMEOUT)
    with pytest.raises(PostError, match="empty"):
        answers[1].result()
    assert [answers[i].result().priority_score for i in (0, 2)] == [0.1, 0.2]
    assert service.status().refused == 1


def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    model = Recorder()
    service = CrisisService(model, ServiceSettings(batch_size=2))
    answers = [service.submit(Post(f"0.{i}")) for i in range(1, 8)]
    service.close()
    service.close()
    assert all(answer.done() for answer in answers)
    with pytest.raises(PostError, match="shutting down"):
        service.classify(Post("0.9"), TIMEOUT)


def test_content_key() -> None:
    assert content_key(Post("Flood! https://a.b", post_id="1")) == content_key(Post("flood!", event_id="e"))
    assert content_key(Post("flood")) != content_key(Post("flood", (b"image",)))
    assert content_key(Post("\ud83d")) != content_key(Post(""))


def test_the_cache_is_bounded() -> None:
    known = KnownAnswers(size=3)
    posts = [Post(f"text {i}", post_id=str(i)) for i in range(5)]
    for post in posts:
        known.keep(post, report(0.5, post))
    assert [known.find(post) is not None for post in posts] == [False, False, True, True, True]


def test_ranking_is_bounded_and_by_event() -> None:
    ranked = RankedReports(size=3, max_events=2)
    for number, priority in enumerate((0.1, 0.9, 0.5, 0.9, 0.4)):
        ranked.add(report(priority, Post(post_id=str(number), event_id="e")))
    assert [entry.post_id for entry in ranked.top("e")] == ["1", "3", "2"]
    assert ranked.top("unknown") == []
    for event in ("f", "g"):
        ranked.add(report(0.5, Post(event_id=event)))
    assert ranked.events() == ["f", "g"]


@pytest.mark.parametrize(
    ("shares", "level"), [((0.7, 0.3), "stable"), ((0.5, 0.5), "noticeable"), ((0.2, 0.8), "strong")]
)
def test_drift(shares: tuple[float, float], level: str) -> None:
    watch = DriftWatch({"a": 700, "b": 300}, window=20)
    assert watch.status().level == "unknown"
    for _ in range(9):
        watch.add(report(0.5, shares=shares))
    assert watch.status().stability_index is None
    for _ in range(30):
        watch.add(report(0.5, shares=shares))
    status = watch.status()
    assert (status.posts, status.level) == (20, level)
    assert status.shares == pytest.approx({"a": shares[0], "b": shares[1]})
    assert status.mean_confidence == pytest.approx(max(shares))
