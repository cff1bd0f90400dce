"""Readers of image-text pairs: a folder with ``pairs.jsonl``, synthesised picks, or the Grocery Store data set.

An *item* has images and texts that all match each other. Ids are strings throughout.

* ``pairs.jsonl``: one object per line, ``{"image": "path below the folder", "text": "...", "item": "id",
  "split": "name"}``. ``item`` gathers lines to one item (default: the lines of one image); ``split`` is optional. Lines
  with an image or a text alone serve training on images or texts alone.
* ARMBench's identification layout, as ``mca synth picks`` writes it: reference images with the description that a
  container's manifest gives the product; ``split`` is ``train`` or ``test`` after the split file's lists of objects.
* Grocery Store Dataset (Klasson et al., WACV 2019): the description of every class in ``classes.csv`` with its iconic
  image (split ``iconic``) and with each of its photos in ``train.txt``, ``val.txt`` and ``test.txt`` (split by file).
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mca_perception.datasets.armbench import MAX_PICK_JSON_BYTES, find_references, read_json, read_splits
from mca_perception.errors import DatasetError

__all__ = ["MAX_TEXT_CHARACTERS", "PAIRS", "Item", "PairIndex", "read_pairs"]

PAIRS = "pairs.jsonl"
CLASSES = "classes.csv"
PHOTO_SPLITS = ("train", "val", "test")
MAX_LINE_BYTES = 1_000_000
MAX_TEXT_CHARACTERS = 20_000
MAX_LINES = 100_000_000
BOTH = ("image", "text")


@dataclass(frozen=True)
class Item:
    """Images and texts of one thing.

    Attributes:
        id: unique in its data set.
        images: image files.
        texts: texts, not empty, without surrounding white space.
        split: name of the part of the data set it belongs to, or empty.
    """

    id: str
    images: tuple[Path, ...]
    texts: tuple[str, ...]
    split: str = ""


@dataclass(frozen=True)
class PairIndex:
    """What a folder of pairs holds.

    Attributes:
        root: the folder.
        items: usable items, sorted by id.
        skipped: lines or items left out, by reason.
    """

    root: Path
    items: tuple[Item, ...]
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass
class _Collected:
    """An item while it is being put together; dictionaries keep the order and drop repetitions."""

    images: dict[Path, None] = field(default_factory=dict)
    texts: dict[str, None] = field(default_factory=dict)
    split: str = ""


class _UnusableError(Exception):
    """A line or an item that is left out; the message is the reason."""


def read_pairs(data: str | os.PathLike[str], *, need: Collection[str] = BOTH) -> PairIndex:
    """Read a folder of image-text pairs in any of the three layouts.

    Args:
        data: folder with ``pairs.jsonl``, with ``Picks/`` and ``Reference_Images/``, or with ``classes.csv``.
        need: what an item must have, out of ``image`` and ``text``; others are skipped.

    Raises:
        DatasetError: the folder has none of the layouts, a file in it is damaged, or no item is usable.
    """
    root = Path(data)
    skipped: Counter[str] = Counter()
    if (root / PAIRS).is_file():
        found = _read_jsonl(root, skipped)
    elif (root / "Reference_Images").is_dir() and (root / "Picks").is_dir():
        found = _read_picks(root, skipped)
    elif (root / CLASSES).is_file():
        found = _read_classes(root, skipped)
    else:
        raise DatasetError(
            f"{root} holds no image-text pairs; give a folder with {PAIRS}, with Picks/ and Reference_Images/, "
            f"or with {CLASSES}"
        )
    items = []
    for name, parts in sorted(found.items()):
        if "image" in need and not parts.images:
            skipped["item without an image"] += 1
        elif "text" in need and not parts.texts:
            skipped["item without a text"] += 1
        else:
            items.append(Item(name, tuple(parts.images), tuple(parts.texts), parts.split))
    if not items:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "nothing there"
        raise DatasetError(f"{root} has no item with {' and '.join(need)} ({reasons}); check the folder")
    return PairIndex(root, tuple(items), skipped)


def _read_jsonl(root: Path, skipped: Counter[str]) -> dict[str, _Collected]:
    items: dict[str, _Collected] = {}
    resolved = root.resolve()
    for number, line in enumerate(_lines(root / PAIRS), start=1):
        if number > MAX_LINES:
            raise DatasetError(f"{root / PAIRS} has more than {MAX_LINES:,} lines; split the data set")
        if not line.strip():
            continue
        try:
            fields = _parse_line(line)
            image = _confined(resolved, fields["image"]) if fields["image"] else None
            text = _usable_text(fields["text"]) if fields["text"] else None
        except _UnusableError as reason:
            skipped[str(reason)] += 1
            continue
        if image is None and text is None:
            skipped["line without image and text"] += 1
            continue
        item = items.setdefault(fields["item"] or fields["image"] or f"line {number:09d}", _Collected())
        item.split = fields["split"] or item.split
        if image is not None:
            item.images[image] = None
        if text is not None:
            item.texts[text] = None
    return items


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file; one that is too long comes cut off, and is then not valid JSON."""
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES):
            whole = line.endswith(b"\n")
            yield line
            while not whole and (rest := stream.readline(MAX_LINE_BYTES)):
                whole = rest.endswith(b"\n")


def _parse_line(line: bytes) -> dict[str, str]:
    if len(line) >= MAX_LINE_BYTES:
        raise _UnusableError(f"line of more than {MAX_LINE_BYTES:,} bytes")
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise _UnusableError("line that is not JSON") from None
    if not isinstance(content, dict):
        raise _UnusableError("line that is no object")
    fields = {name: content.get(name) or "" for name in ("image", "text", "item", "split")}
    if not all(isinstance(value, str) for value in fields.values()):
        raise _UnusableError("line with a field that is no string")
    return fields


def _confined(root: Path, name: str) -> Path:
    """A file below ``root``, which is resolved."""
    try:
        path = (root / name).resolve()
        inside, exists = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        raise _UnusableError("file missing") from None
    if not inside:
        raise _UnusableError("file outside the folder")
    if not exists:
        raise _UnusableError("file missing")
    return path


def _usable_text(text: str) -> str:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise _UnusableError(f"text of more than {MAX_TEXT_CHARACTERS:,} characters")
    text = text.strip()
    if not text:
        raise _UnusableError("empty text")
    return text


def _read_picks(root: Path, skipped: Counter[str]) -> dict[str, _Collected]:
    items = {
        name: _Collected(images=dict.fromkeys(images))
        for name, images in find_references(root / "Reference_Images", skipped).items()
    }
    for split, names in read_splits(root).items():
        for name in names if split.endswith("-objects") else ():
            if name in items:
                items[name].split = split.removesuffix("-objects").removesuffix("set")
    for pick in sorted(path for path in (root / "Picks").iterdir() if path.is_dir()):
        try:
            manifest = read_json(pick / "container.json", MAX_PICK_JSON_BYTES)
        except DatasetError:
            skipped["container.json missing or not readable"] += 1
            continue
        for name, entry in manifest.items() if isinstance(manifest, dict) else ():
            item = items.get(name)
            description = entry.get("description") if isinstance(entry, dict) else None
            if item is None or item.texts or not isinstance(description, str):
                continue
            try:
                item.texts[_usable_text(description)] = None
            except _UnusableError as reason:
                skipped[str(reason)] += 1
    return items


def _read_classes(root: Path, skipped: Counter[str]) -> dict[str, _Collected]:
    items: dict[str, _Collected] = {}
    descriptions: dict[str, str] = {}
    resolved = root.resolve()
    for row in _rows(root / CLASSES)[1:]:
        if len(row) < 6:
            skipped["row without image and description"] += 1
            continue
        try:
            image, description = (_confined(resolved, name.lstrip("/")) for name in row[4:6])
            text = _usable_text(
                description.read_bytes()[: 4 * MAX_TEXT_CHARACTERS + 1].decode("utf-8", "replace")
            )
        except _UnusableError as reason:
            skipped[str(reason)] += 1
            continue
        items[row[0]] = _Collected({image: None}, {text: None}, "iconic")
        descriptions[row[1].strip()] = text
    for split in PHOTO_SPLITS:
        for row in _rows(root / f"{split}.txt") if (root / f"{split}.txt").is_file() else ():
            try:
                photo = _confined(resolved, row[0])
            except _UnusableError as reason:
                skipped[str(reason)] += 1
                continue
            if len(row) < 2 or row[1].strip() not in descriptions:
                skipped["photo of a class without a description"] += 1
                continue
            items[row[0]] = _Collected({photo: None}, {descriptions[row[1].strip()]: None}, split)
    return items


def _rows(path: Path) -> list[list[str]]:
    try:
        return [row for row in csv.reader(path.read_text(encoding="utf-8").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); check the file") from error
