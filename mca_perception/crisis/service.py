"""The service without its transport: posts in, reports out, from many threads at once.

Posts are gathered into micro-batches, known answers come from a cache, every report is ranked within its event, and
what does not work is said in the answer: a full queue, a failing model, a post without anything to read.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from mca_perception.crisis.answers import KnownAnswers, content_key
from mca_perception.crisis.drift import DriftWatch
from mca_perception.crisis.posts import CrisisReport, Post
from mca_perception.crisis.ranking import RankedReports
from mca_perception.errors import PostError

__all__ = ["BatchClassifier", "CrisisService", "ServiceSettings", "ServiceStatus"]

MAX_ID_LENGTH = 256
"""Characters of a post's or event's id."""


class BatchClassifier(Protocol):
    """What the service needs of a classifier."""

    def classify(self, posts: Sequence[Post]) -> list[CrisisReport | PostError]:
        """One entry per post, in order."""
        ...


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of the service.

    Attributes:
        batch_size: most posts in a batch.
        batch_seconds: how long the first post of a batch waits for others. Little is enough: while a batch is in the
            model, the next one gathers by itself.
        queue_size: posts that may wait; further ones are refused at once.
        queue_bytes: text and images that may wait in all.
        cache_size: answers remembered.
        ranked_per_event: reports kept per event.
    """

    batch_size: int = 16
    batch_seconds: float = 0.002
    queue_size: int = 1024
    queue_bytes: int = 256_000_000
    cache_size: int = 10_000
    ranked_per_event: int = 100


@dataclass(frozen=True)
class ServiceStatus:
    """Counters since the start.

    Attributes:
        answered: reports given, cached ones included.
        cached: reports from the cache.
        refused: posts without anything to read, or sent while the queue was full.
        failed: posts in batches that the model failed on.
        batches: that went through the model.
        waiting: posts in the queue now.
        degraded: why the service is not at its best; empty when it is.
    """

    answered: int
    cached: int
    refused: int
    failed: int
    batches: int
    waiting: int
    degraded: str


@dataclass(frozen=True)
class _Job:
    post: Post
    answer: Future[CrisisReport]
    arrived: float

    @property
    def size(self) -> int:
        return len(self.post.text) + sum(map(len, self.post.images))


class CrisisService:
    """Categorises posts as they come; close it when done, or use it as a context manager.

    Attributes:
        ranked: the most urgent reports of every event.
    """

    def __init__(
        self,
        classifier: BatchClassifier,
        settings: ServiceSettings | None = None,
        *,
        drift: DriftWatch | None = None,
    ) -> None:
        self.settings = settings or ServiceSettings()
        self.classifier = classifier
        self.drift = drift
        self.ranked = RankedReports(self.settings.ranked_per_event)
        self._known = KnownAnswers(self.settings.cache_size)
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._counts = dict.fromkeys(("answered", "refused", "failed", "batches"), 0)
        self._failure = ""
        self._closed = False
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._worker = threading.Thread(target=self._work, name="crisis-batches", daemon=True)
        self._worker.start()

    def __enter__(self) -> CrisisService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, post: Post) -> Future[CrisisReport]:
        """Hand in a post.

        Returns:
            A future with its report, or with a :class:`PostError` that says why there is none.
        """
        job = _Job(post, Future(), time.perf_counter())
        if (known := self._known.find(post)) is not None:
            self._finish(job, known)
            return job.answer
        with self._lock:
            if refusal := self._refusal(job):
                self._counts["refused"] += 1
            else:
                self._waiting_bytes += job.size
                self._jobs.put_nowait(job)
                return job.answer
        job.answer.set_exception(PostError(refusal))
        return job.answer

    def _refusal(self, job: _Job) -> str:
        """Why a post cannot wait in the queue, or an empty string; under the lock, as whatever fills the queue."""
        if self._closed:
            return "the service is shutting down: send the post to another one"
        if max(len(job.post.post_id), len(job.post.event_id)) > MAX_ID_LENGTH:
            return f"post_id and event_id may have at most {MAX_ID_LENGTH} characters: shorten them"
        if self._jobs.qsize() >= self.settings.queue_size:
            return f"{self.settings.queue_size} posts are waiting already: send the post again later"
        if self._waiting_bytes + job.size > self.settings.queue_bytes:
            return (
                f"posts of {self._waiting_bytes:,} bytes are waiting, and with this one of {job.size:,} they would "
                f"exceed {self.settings.queue_bytes:,}: send it again later, or smaller images"
            )
        return ""

    def classify(self, post: Post, timeout: float | None = None) -> CrisisReport:
        """Hand in a post and wait.

        Raises:
            PostError: it cannot be categorised, the queue is full, or the model fails.
            TimeoutError: there was no answer in time.
        """
        return self.submit(post).result(timeout)

    def status(self) -> ServiceStatus:
        """Counters, and whether the service is degraded."""
        waiting = self._jobs.qsize()
        with self._lock:
            degraded = self._failure
            if not degraded and waiting >= self.settings.queue_size:
                degraded = "the queue is full"
            return ServiceStatus(**self._counts, cached=self._known.hits, waiting=waiting, degraded=degraded)

    def close(self) -> None:
        """Answer what is waiting, refuse what comes later, and stop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put_nowait(None)
        self._worker.join()

    def _work(self) -> None:
        stopping = False
        while not stopping:
            first = self._jobs.get()
            if first is None:
                return
            batch, stopping = self._gather(first)
            with self._lock:
                self._waiting_bytes -= sum(job.size for job in batch)
            self._answer(batch)

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """Posts of one batch, and whether the end was asked for."""
        batch = [first]
        deadline = time.perf_counter() + self.settings.batch_seconds
        while len(batch) < self.settings.batch_size:
            try:
                job = self._jobs.get(timeout=max(0.0, deadline - time.perf_counter()))
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _answer(self, batch: list[_Job]) -> None:
        """Send a batch through the model; of copies the first goes, and the others are answered from the cache."""
        by_content: dict[bytes, list[_Job]] = {}
        for job in batch:
            by_content.setdefault(content_key(job.post), []).append(job)
        posts = [jobs[0].post for jobs in by_content.values()]
        try:
            answers = self.classifier.classify(posts)
        except Exception as error:  # whatever a model does, the service answers and goes on
            self._fail(batch, f"the model failed ({type(error).__name__}: {str(error)[:200]})")
            return
        with self._lock:
            self._failure = ""
            self._counts["batches"] += 1
        for (first, *copies), answer in zip(by_content.values(), answers, strict=True):
            if isinstance(answer, PostError):
                for job in (first, *copies):
                    self._count("refused")
                    job.answer.set_exception(answer)
                continue
            self._known.keep(first.post, answer)
            self._finish(first, answer)
            for job in copies:
                known = self._known.find(job.post)
                assert known is not None  # kept just now, and only this thread lets go of answers
                self._finish(job, known)

    def _finish(self, job: _Job, report: CrisisReport) -> None:
        report = replace(report, latency_ms=(time.perf_counter() - job.arrived) * 1000)
        if not report.cached:
            self.ranked.add(report)
            if self.drift is not None:
                self.drift.add(report)
        self._count("answered")
        job.answer.set_result(report)

    def _fail(self, batch: list[_Job], reason: str) -> None:
        with self._lock:
            self._failure = reason
            self._counts["failed"] += len(batch)
        for job in batch:
            job.answer.set_exception(PostError(f"{reason}: send the post again later"))

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
