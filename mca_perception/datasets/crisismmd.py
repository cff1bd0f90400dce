"""CrisisMMD v2.0: tweets with images of seven disasters of 2017, in the published train / dev / test split files.

The format and every count follow the specification of crisis categorisation, sections 1.1, 1.2 and 2.1. A row is one
pair of a tweet and an image. The *agreed* files hold the pairs whose text and image carry the same label; the *all*
files hold every pair. Classes are those of ``label_text``, in alphabetical order; in the humanitarian files ``label``
keeps a finer one of eight values, which :data:`MERGED` maps to the five.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import DatasetError

__all__ = [
    "COLUMNS",
    "LABELS",
    "MERGED",
    "SPLITS",
    "TASKS",
    "CrisisSplit",
    "LabelledPost",
    "first_of_each_tweet",
    "read_split",
    "split_file",
]

TASKS = ("informative", "humanitarian")
SPLITS = ("train", "dev", "test")
COLUMNS = (
    "event_name",
    "tweet_id",
    "image_id",
    "tweet_text",
    "image",
    "label",
    "label_text",
    "label_image",
    "label_text_image",
)
LABELS: dict[str, tuple[str, ...]] = {
    "informative": ("informative", "not_informative"),
    "humanitarian": (
        "affected_individuals",
        "infrastructure_and_utility_damage",
        "not_humanitarian",
        "other_relevant_information",
        "rescue_volunteering_or_donation_effort",
    ),
}
MERGED = {
    "affected_individuals": "affected_individuals",
    "injured_or_dead_people": "affected_individuals",
    "missing_or_found_people": "affected_individuals",
    "infrastructure_and_utility_damage": "infrastructure_and_utility_damage",
    "vehicle_damage": "infrastructure_and_utility_damage",
    "not_humanitarian": "not_humanitarian",
    "other_relevant_information": "other_relevant_information",
    "rescue_volunteering_or_donation_effort": "rescue_volunteering_or_donation_effort",
}
"""The eight fine-grained humanitarian labels, each with the class it is merged into."""

AGREEMENT = {"Positive": True, "Negative": False}
MAX_FILE_BYTES = 256_000_000
MAX_LINE_BYTES = 1_000_000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class LabelledPost:
    """One row: a tweet with one of its images.

    Attributes:
        event: name of the disaster.
        tweet_id: id of the tweet; rows of one tweet share it.
        image_id: ``<tweet_id>_<k>``, unique in a file.
        text: the tweet, as published.
        image: path of the image below the data set's folder. It may not be there.
        label: index into :data:`LABELS` of the task, from ``label_text``.
        fine_label: the column ``label``.
        image_label: index of ``label_image``; equal to ``label`` in the agreed files.
        agrees: whether text and image carry the same label.
    """

    event: str
    tweet_id: str
    image_id: str
    text: str
    image: str
    label: int
    fine_label: str
    image_label: int
    agrees: bool


@dataclass(frozen=True)
class CrisisSplit:
    """The rows of one file.

    Attributes:
        root: folder of the data set.
        path: the file.
        task: ``informative`` or ``humanitarian``.
        split: ``train``, ``dev`` or ``test``.
        posts: its rows, in file order.
        corrected: what was read although it is not plain, by reason.
    """

    root: Path
    path: Path
    task: str
    split: str
    posts: tuple[LabelledPost, ...]
    corrected: Counter[str] = field(default_factory=Counter)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names by index."""
        return LABELS[self.task]

    @property
    def texts(self) -> list[str]:
        """Text of every row."""
        return [post.text for post in self.posts]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every row, ``[N]``."""
        return np.array([post.label for post in self.posts], np.int64)

    @property
    def events(self) -> list[str]:
        """Disaster of every row."""
        return [post.event for post in self.posts]

    @property
    def tweet_ids(self) -> set[str]:
        """Ids of the tweets."""
        return {post.tweet_id for post in self.posts}

    def class_counts(self) -> dict[str, int]:
        """Rows of each class, in the order of the classes."""
        counts = Counter(post.label for post in self.posts)
        return {name: counts[index] for index, name in enumerate(self.label_names)}

    def missing_images(self) -> list[LabelledPost]:
        """Rows whose image file is not below the data set's folder."""
        return [post for post in self.posts if image_path(self.root, post) is None]


def split_file(task: str, split: str, *, agreed: bool = True) -> str:
    """Official name of a file.

    Raises:
        DatasetError: there is no such task or split.
    """
    if task not in TASKS:
        raise DatasetError(f"CrisisMMD has no task {task!r}; choose {' or '.join(TASKS)}")
    if split not in SPLITS:
        raise DatasetError(f"CrisisMMD has no split {split!r}; choose {', '.join(SPLITS)}")
    return f"task_{task}_text_img_{'agreed_lab_' if agreed else ''}{split}.tsv"


def read_split(data: str | os.PathLike[str], task: str, split: str, *, agreed: bool = True) -> CrisisSplit:
    """Read one split file. Images are optional: a row whose image is missing is kept.

    Args:
        data: folder with the split files, and with ``data_image/`` where there are images.
        task: ``informative`` or ``humanitarian``.
        split: ``train``, ``dev`` or ``test``.
        agreed: read the pairs with equal labels for text and image, as the published results do; else all pairs.

    Raises:
        DatasetError: the file is missing, empty or too large, its columns are others than :data:`COLUMNS`, or a row
            has another number of columns, an unknown label, an empty tweet id, or an image id that came before. The
            message names the line.
    """
    root = Path(data)
    path = root / split_file(task, split, agreed=agreed)
    corrected: Counter[str] = Counter()
    lines = _lines(path, corrected)
    _check_header(path, lines[0])
    first_line: dict[str, int] = {}
    posts = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            corrected["empty line"] += 1
            continue
        post = _parse(line, task, f"{path}, line {number}")
        if post.image_id in first_line:
            raise DatasetError(
                f"{path}, line {number}: image_id {post.image_id!r} is in line {first_line[post.image_id]} already; "
                "remove one of the two rows"
            )
        if agreed and not post.agrees:
            raise DatasetError(
                f"{path}, line {number}: text and image labels differ, which an agreed_lab file does not have; take "
                "the published file"
            )
        first_line[post.image_id] = number
        posts.append(post)
    if not posts:
        raise DatasetError(f"{path} has a header but no rows; take the published file")
    return CrisisSplit(root, path, task, split, tuple(posts), corrected)


def first_of_each_tweet(posts: Iterable[LabelledPost]) -> list[LabelledPost]:
    """One row per tweet, the first: for models that read the text alone, which its other rows only repeat."""
    kept: dict[str, LabelledPost] = {}
    for post in posts:
        kept.setdefault(post.tweet_id, post)
    return list(kept.values())


def image_path(root: Path, post: LabelledPost) -> Path | None:
    """Image file of a row below ``root``; None when it is missing or its path would leave the folder."""
    try:
        path = (root / post.image).resolve()
        usable = path.is_relative_to(root.resolve()) and path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return None
    return path if usable else None


def _lines(path: Path, corrected: Counter[str]) -> Sequence[str]:
    """Lines of a file without their ends; only LF and CRLF end one, since tweets hold other separators."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes; split it")
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read ({error.strerror}); give the folder with the published split files"
        ) from error
    lines = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if len(raw) > MAX_LINE_BYTES:
            raise DatasetError(
                f"{path}, line {number} has more than {MAX_LINE_BYTES:,} bytes; shorten or remove it"
            )
        line = raw.removesuffix(b"\r").decode("utf-8", "replace")
        if REPLACEMENT in line:
            corrected["line with invalid UTF-8 or a replacement character"] += 1
        lines.append(line)
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DatasetError(f"{path} is empty; take the published file")
    return lines


def _check_header(path: Path, line: str) -> None:
    names = tuple(line.split("\t"))
    if names != COLUMNS:
        raise DatasetError(
            f"{path}, line 1: the columns are {', '.join(names)[:300]}; they must be, tab separated, "
            f"{', '.join(COLUMNS)}"
        )


def _parse(line: str, task: str, where: str) -> LabelledPost:
    values = line.split("\t")
    if len(values) != len(COLUMNS):
        raise DatasetError(
            f"{where}: {len(values)} columns instead of {len(COLUMNS)}; remove the row, or the tabs inside its text"
        )
    row = dict(zip(COLUMNS, values, strict=True))
    if not row["tweet_id"] or not row["image_id"]:
        raise DatasetError(f"{where}: tweet_id or image_id is empty; remove the row")
    fine = MERGED if task == "humanitarian" else dict.fromkeys(LABELS[task])
    if row["label"] not in fine:
        raise DatasetError(_unknown(where, "label", row["label"], fine))
    if row["label_text_image"] not in AGREEMENT:
        raise DatasetError(_unknown(where, "label_text_image", row["label_text_image"], AGREEMENT))
    text_label, image_label = (
        _class(row[name], LABELS[task], where, name) for name in ("label_text", "label_image")
    )
    return LabelledPost(
        event=row["event_name"],
        tweet_id=row["tweet_id"],
        image_id=row["image_id"],
        text=row["tweet_text"],
        image=row["image"],
        label=text_label,
        fine_label=row["label"],
        image_label=image_label,
        agrees=AGREEMENT[row["label_text_image"]] and text_label == image_label,
    )


def _class(value: str, names: tuple[str, ...], where: str, column: str) -> int:
    if value not in names:
        raise DatasetError(_unknown(where, column, value, names))
    return names.index(value)


def _unknown(where: str, column: str, value: str, known: Iterable[str]) -> str:
    return f"{where}: unknown {column} {value[:80]!r}; it must be one of {', '.join(known)}"
