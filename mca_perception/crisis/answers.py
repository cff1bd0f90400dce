"""Answers that are known already: to the same post id, and to the same content under another id."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Generic, TypeVar

from mca_perception.crisis.features import normalise_text
from mca_perception.crisis.posts import CrisisReport, Post

__all__ = ["KnownAnswers", "content_key"]

Value = TypeVar("Value")
_RETWEET = "rt @user:"


class KnownAnswers:
    """Bounded caches of reports by post id and by content; thread-safe."""

    def __init__(self, size: int = 10_000) -> None:
        self._by_id: _Recent[tuple[bytes, CrisisReport]] = _Recent(size)
        self._by_content: _Recent[CrisisReport] = _Recent(size)
        self._lock = threading.Lock()
        self.hits = 0

    def find(self, post: Post) -> CrisisReport | None:
        """The report for a post, under its own ids and marked as cached; None if there is none.

        An id that comes again with other content is a new post: its old report would be wrong.
        """
        key = content_key(post)
        with self._lock:
            known = self._by_id.get(post.post_id) if post.post_id else None
            report = known[1] if known is not None and known[0] == key else self._by_content.get(key)
            if report is None:
                return None
            self.hits += 1
        return replace(report, post_id=post.post_id, event_id=post.event_id, cached=True)

    def keep(self, post: Post, report: CrisisReport) -> None:
        """Remember a report."""
        key = content_key(post)
        with self._lock:
            if post.post_id:
                self._by_id.put(post.post_id, (key, report))
            self._by_content.put(key, report)


def content_key(post: Post) -> bytes:
    """Hash of what the model sees: text without links, case, user names and the mark of a retweet; image bytes."""
    digest = hashlib.sha256(
        normalise_text(post.text).removeprefix(_RETWEET).strip().encode("utf-8", "surrogatepass")
    )
    for image in post.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.digest()


class _Recent(Generic[Value]):
    """The values used last, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
