"""The index of an identification folder: every pick with its product, manifest and views, read and checked once.

Reading the raw folder opens two JSON files for each of some hundred thousand picks. The index holds what they say, in
one file of JSON lines: a header, the products with their reference images, then the picks in order of their ids, also
those that have to be left out, with the reason. Paths in it are relative to the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mca_perception.datasets.armbench import (
    SPLIT_NAME,
    VIEWS,
    IdentificationIndex,
    Pick,
    UnusablePickError,
    find_references,
    read_identification,
    read_pick,
    read_splits,
)
from mca_perception.errors import DatasetError

__all__ = ["INDEX_NAME", "IndexSummary", "build_index", "load_identification", "read_index"]

INDEX_NAME = "identification-index.jsonl"
FORMAT = "identification-index"
VERSION = 1
MAX_LINE_BYTES = 128_000_000
_PRODUCT_LISTS = "-objects"  # lists of the split file that name products, not picks
_log = logging.getLogger(__name__)


@dataclass
class IndexSummary:
    """What an index holds.

    Attributes:
        picks: usable picks.
        products: products with reference images.
        references: their images.
        skipped: picks left out, by reason.
        incomplete: picks and products kept although something is missing, by what is missing.
        views: usable picks that have a view, by its name.
        splits: usable picks by split.
        manifest_sizes: smallest, median and largest number of products in a container.
    """

    picks: int = 0
    products: int = 0
    references: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    manifest_sizes: tuple[int, int, int] = (0, 0, 0)


def build_index(data: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> IndexSummary:
    """Read an identification folder and write its index atomically.

    Args:
        data: folder with ``Picks/``, ``Reference_Images/`` and, if there is one, the split file.
        out: the index; by default ``identification-index.jsonl`` in the folder.

    Raises:
        DatasetError: a folder is missing, there is no usable pick, or the index cannot be written.
    """
    root = _checked_root(data)
    path = root / INDEX_NAME if out is None else Path(out)
    splits = read_splits(root)
    summary = IndexSummary()
    references = find_references(root / "Reference_Images", summary.incomplete)
    summary.products, summary.references = len(references), sum(map(len, references.values()))
    pick_splits = {name: ids for name, ids in splits.items() if not name.endswith(_PRODUCT_LISTS)}
    summary.incomplete["pick in several splits"] = _repeated(pick_splits)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "key": _listing_key(root),
        "splits": {name: sorted(ids) for name, ids in splits.items()},
        "incomplete": dict(summary.incomplete),
    }
    lines = _lines(root, references, pick_splits, summary)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            for line in (header, *_product_lines(root, references)):
                stream.write(json.dumps(line) + "\n")
            for line in lines:
                stream.write(json.dumps(line) + "\n")
            stream.write(json.dumps({"end": summary.picks}) + "\n")
        if summary.picks == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in summary.skipped.items())
            raise DatasetError(
                f"{root}/Picks has no usable pick ({reasons or 'none there'}); check the folder"
            )
        part.replace(path)
    except OSError as error:
        raise DatasetError(
            f"index {path} cannot be written ({error.strerror}); choose another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    summary.incomplete = +summary.incomplete
    return summary


def read_index(
    path: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    limit: int | None = None,
) -> IdentificationIndex:
    """Read an index instead of the folder that it was built of.

    Args:
        path: the index.
        data: the folder; it may have been moved since.
        split: read the picks of this split only; ``None`` or ``all`` reads every pick.
        limit: stop after this many usable picks.

    Raises:
        DatasetError: the index is damaged, of another version, or of another state of the folder; the split is unknown,
            or has no usable pick.
    """
    root, file = _checked_root(data), Path(path)
    lines = _read_lines(file)
    header = next(lines, {})
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise DatasetError(f"{file} is not an index of this release; build it again with `mca index build`")
    if header.get("key") != _listing_key(root):
        raise DatasetError(
            f"index {file} is of another state of {root}; build it again with `mca index build --data {root}`"
        )
    try:
        index = _assemble(root, header, lines, split, limit)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise _damaged(file) from error
    if not index.picks:
        reasons = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items()) or "none there"
        raise DatasetError(f"{file} has no usable pick ({reasons}); check the split")
    return index


def load_identification(
    data: str | os.PathLike[str], *, split: str | None = None, limit: int | None = None
) -> IdentificationIndex:
    """Read an identification folder, from its index when that lies in it and is up to date.

    Args:
        data: folder with ``Picks/`` and ``Reference_Images/``.
        split: read the picks of this split only; ``None`` or ``all`` reads every pick.
        limit: stop after this many usable picks.

    Raises:
        DatasetError: a folder is missing, the split is unknown, or there is no usable pick.
    """
    path = Path(data) / INDEX_NAME
    if path.is_file():
        try:
            return read_index(path, data, split=split, limit=limit)
        except DatasetError as error:
            _log.warning("%s; reading the folder instead", error)
    return read_identification(data, split=split, limit=limit)


def _checked_root(data: str | os.PathLike[str]) -> Path:
    root = Path(data)
    for name in ("Picks", "Reference_Images"):
        if not (root / name).is_dir():
            raise DatasetError(f"{root} has no {name}/; give the folder with Picks/ and Reference_Images/")
    return root


def _listing_key(root: Path) -> str:
    """Tell states of a folder apart by the names in it and the split file; files within picks are not looked at."""
    digest = hashlib.sha256()
    for name in ("Picks", "Reference_Images"):
        for entry in sorted(path.name for path in (root / name).iterdir()):
            digest.update(entry.encode(errors="surrogateescape") + b"\0")
        digest.update(b"\0")
    for suffix in (".json", ".pickle"):  # as in read_splits, the first one counts
        split = root / f"{SPLIT_NAME}{suffix}"
        if split.is_file():
            digest.update(split.read_bytes())
            break
    return digest.hexdigest()


def _repeated(splits: Mapping[str, frozenset[str]]) -> int:
    return sum(count > 1 for count in Counter(pick for ids in splits.values() for pick in ids).values())


def _product_lines(root: Path, references: Mapping[str, list[Path]]) -> Iterator[dict[str, Any]]:
    for product, images in references.items():
        yield {"product": product, "images": [image.relative_to(root).as_posix() for image in images]}


def _lines(
    root: Path,
    references: Mapping[str, list[Path]],
    splits: Mapping[str, frozenset[str]],
    summary: IndexSummary,
) -> Iterator[dict[str, Any]]:
    """The lines of all picks; fills the summary on the way."""
    found = {entry.name for entry in (root / "Picks").iterdir() if entry.is_dir()}
    sizes: Counter[int] = Counter()
    for pick_id in sorted(found.union(*splits.values())):
        incomplete: Counter[str] = Counter()
        try:
            pick = read_pick(root, pick_id, references, incomplete)
        except UnusablePickError as reason:
            summary.skipped[str(reason)] += 1
            yield {"pick": pick_id, "skipped": str(reason)}
            continue
        problems = sorted(+incomplete)
        summary.picks += 1
        summary.incomplete.update(problems)
        summary.views.update(pick.views.keys())
        summary.splits.update(name for name, ids in splits.items() if pick_id in ids)
        sizes[len(pick.container)] += 1
        yield {
            "pick": pick.id,
            "product": pick.product_id,
            "container": pick.container,
            "views": list(pick.views),
            "polygons": pick.polygons,
            "incomplete": problems,
        }
    ordered = sorted(sizes.elements())
    if ordered:
        summary.manifest_sizes = ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an index; the last one must be there, and say how many picks there are."""
    picks, complete = 0, False
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                entry = json.loads(line)
                if not isinstance(entry, dict) or complete:
                    raise _damaged(path)
                if "end" in entry:
                    complete = entry["end"] == picks
                    continue
                picks += "pick" in entry and "skipped" not in entry
                yield entry
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"index {path} cannot be read ({error}); build it again with `mca index build`"
        ) from error
    if not complete:
        raise _damaged(path)


def _damaged(path: Path) -> DatasetError:
    return DatasetError(f"index {path} is damaged; build it again with `mca index build`")


def _assemble(
    root: Path, header: dict[str, Any], lines: Iterable[dict[str, Any]], split: str | None, limit: int | None
) -> IdentificationIndex:
    splits = {name: frozenset(ids) for name, ids in header["splits"].items()}
    if split not in (None, "all") and split not in splits:
        known = ", ".join(sorted(splits)) or f"none, as {SPLIT_NAME}.json was missing"
        raise DatasetError(f"{root} has no split {split!r} (there are: {known}); give one of these or 'all'")
    wanted = None if split is None or split == "all" else splits[split]
    references: dict[str, list[Path]] = {}
    picks: list[Pick] = []
    skipped, incomplete = Counter[str](), Counter[str](header["incomplete"])
    del incomplete["pick in several splits"]
    for line in lines:
        if "product" in line and "pick" not in line:
            references[line["product"]] = [_within(root, image) for image in line["images"]]
        elif wanted is None or line["pick"] in wanted:
            if limit is not None and len(picks) >= limit:
                break
            if "skipped" in line:
                skipped[line["skipped"]] += 1
            else:
                picks.append(_as_pick(root, line))
                incomplete.update(line["incomplete"])
    return IdentificationIndex(root, tuple(picks), references, splits, skipped, incomplete)


def _as_pick(root: Path, line: dict[str, Any]) -> Pick:
    folder = _within(root, f"Picks/{line['pick']}")
    views = {view: folder / f"{view}.jpg" for view in VIEWS if view in line["views"]}
    return Pick(line["pick"], line["product"], tuple(line["container"]), views, line["polygons"])


def _within(root: Path, name: str) -> Path:
    """A path below the folder; an index must not lead elsewhere."""
    if ".." in Path(name).parts:
        raise ValueError(f"{name} leads out of the folder")
    return root / Path(name).as_posix().lstrip("/")
