"""Posts from the command line and from files, to answers as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mca_perception.cli.reports import progress_bar
from mca_perception.crisis.classifier import MAX_BATCH, CrisisClassifier
from mca_perception.crisis.images import MAX_IMAGES
from mca_perception.crisis.post_files import count_lines, read_image, read_posts
from mca_perception.crisis.posts import CrisisReport, Post
from mca_perception.errors import PostError

__all__ = ["classify_file", "classify_one"]


def classify_one(classifier: CrisisClassifier, text: str, images: list[Path]) -> dict[str, Any]:
    """Categorise the post of the command line.

    Raises:
        PostError: there is nothing to read in it, or too many images.
    """
    if len(images) > MAX_IMAGES:
        raise PostError(f"{len(images)} images are given, at most {MAX_IMAGES} are allowed; leave some out")
    post = Post(text=text, images=tuple(read_image(path) for path in images))
    (answer,) = classifier.classify([post])
    if isinstance(answer, PostError):
        raise answer
    return answer.to_dict()


def classify_file(classifier: CrisisClassifier, path: Path, out: Path | None) -> tuple[int, int]:
    """Categorise a file of posts in batches, in order; every line is answered, by a report or by an error.

    Returns:
        Posts categorised, and lines refused.
    """
    counts = {True: 0, False: 0}
    posts = read_posts(path)
    batches = range(-(-max(1, count_lines(path) + 1) // MAX_BATCH))
    with _output(out) as stream, progress_bar() as progress:
        for _ in progress(batches, "categorising"):
            batch = list(islice(posts, MAX_BATCH))
            readable = [post for _, post in batch if isinstance(post, Post)]
            answers = iter(classifier.classify(readable))
            for number, post in batch:
                answer = next(answers) if isinstance(post, Post) else post
                counts[isinstance(answer, CrisisReport)] += 1
                print(json.dumps(_entry(number, post, answer), ensure_ascii=False), file=stream)
    return counts[True], counts[False]


def _entry(number: int, post: Post | PostError, answer: CrisisReport | PostError) -> dict[str, Any]:
    if isinstance(answer, CrisisReport):
        return {"line": number, **answer.to_dict()}
    known = {"post_id": post.post_id} if isinstance(post, Post) and post.post_id else {}
    return {"line": number, **known, "error": str(answer)}


@contextlib.contextmanager
def _output(out: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears when it is complete."""
    if out is None:
        yield sys.stdout
        return
    if not out.parent.is_dir():
        raise PostError(f"folder {out.parent} for --out does not exist; make it first")
    with tempfile.NamedTemporaryFile(
        "w", dir=out.parent, delete=False, encoding="utf-8", errors="replace"
    ) as stream:
        part = Path(stream.name)
        try:
            yield stream
        except BaseException:
            part.unlink()
            raise
    part.chmod(0o644)
    part.replace(out)
