"""Reader of the ARMBench identification layout: picks, their containers and the products' reference images.

``Picks/<Pick-ID>/{PickRGB,ToteWallRGB,OnArmLowRGB,FarTrayRGB}.jpg, container.json, annotation.json``;
``Reference_Images/<Product-ID>/1.jpg ...``; ``train-test-split.json``, or the original ``.pickle``, which is
converted once by an unpickler that builds plain containers only. Ids are strings throughout.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import find_images
from mca_perception.datasets.shapes import rasterise_segmentation
from mca_perception.errors import DatasetError

__all__ = [
    "VIEWS",
    "IdentificationIndex",
    "Pick",
    "Polygons",
    "UnusablePickError",
    "find_references",
    "rasterise_polygons",
    "read_identification",
    "read_json",
    "read_pick",
    "read_splits",
]

VIEWS = ("PickRGB", "ToteWallRGB", "OnArmLowRGB", "FarTrayRGB")
"""Views of a pick: before it, and up to three after it."""

SPLIT_NAME = "train-test-split"
MAX_PICK_JSON_BYTES = 16_000_000
MAX_SPLIT_BYTES = 512_000_000
MAX_MANIFEST = 100_000
MAX_POLYGON_POINTS = 100_000
MAX_COORDINATE = 1e9
_PLAIN_CLASSES = {("builtins", "set"), ("builtins", "frozenset"), ("collections", "OrderedDict")}

Polygons = list[list[list[float]]]
"""``[[[x, y], ...], ...]`` in pixels of one view."""


@dataclass(frozen=True)
class Pick:
    """One pick.

    Attributes:
        id: Pick-ID.
        product_id: the product that was picked.
        container: products in the container before the pick (its manifest).
        views: image file by view name; only views that exist.
        polygons: outline of the object by view name; only views that have one.
    """

    id: str
    product_id: str
    container: tuple[str, ...]
    views: dict[str, Path]
    polygons: dict[str, Polygons]


@dataclass(frozen=True)
class IdentificationIndex:
    """What an identification folder holds.

    Attributes:
        root: the folder.
        picks: usable picks, sorted by id.
        references: reference images of every product that has some.
        splits: pick ids by split name (``trainset``, ``testset``); empty when there is no split file.
        skipped: picks left out, by reason.
        incomplete: picks and products kept although something is missing, by what is missing.
    """

    root: Path
    picks: tuple[Pick, ...]
    references: dict[str, list[Path]]
    splits: dict[str, frozenset[str]]
    skipped: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)


class UnusablePickError(DatasetError):
    """A pick that is left out; the message is the reason."""


def read_identification(
    data: str | os.PathLike[str], *, split: str | None = None, limit: int | None = None
) -> IdentificationIndex:
    """Read an identification folder.

    Args:
        data: folder with ``Picks/`` and ``Reference_Images/``.
        split: read the picks of this split only; ``None`` or ``all`` reads every pick.
        limit: stop after this many usable picks.

    Raises:
        DatasetError: a folder is missing, the split is unknown, or there is no usable pick.
    """
    root = Path(data)
    for name in ("Picks", "Reference_Images"):
        if not (root / name).is_dir():
            raise DatasetError(f"{root} has no {name}/; give the folder with Picks/ and Reference_Images/")
    splits = read_splits(root)
    skipped: Counter[str] = Counter()
    incomplete: Counter[str] = Counter()
    references = find_references(root / "Reference_Images", incomplete)
    picks: list[Pick] = []
    for pick_id in _pick_ids(root, splits, split):
        if limit is not None and len(picks) >= limit:
            break
        try:
            picks.append(read_pick(root, pick_id, references, incomplete))
        except UnusablePickError as reason:
            skipped[str(reason)] += 1
    if not picks:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "none there"
        raise DatasetError(f"{root}/Picks has no usable pick ({reasons}); check the folder and the split")
    return IdentificationIndex(root, tuple(picks), references, splits, skipped, incomplete)


def rasterise_polygons(polygons: Polygons, height: int, width: int) -> NDArray[np.bool_]:
    """Draw the outline of a pick's object in one view: bool ``[height, width]``.

    Raises:
        DatasetError: the size exceeds the limit.
    """
    flat = [[value for point in polygon for value in point] for polygon in polygons]
    return rasterise_segmentation(flat, height, width)


def read_splits(root: Path) -> dict[str, frozenset[str]]:
    """Read ``train-test-split.json``; convert ``train-test-split.pickle`` to it where there is only that.

    Returns:
        Ids by split name; empty when there is neither file.

    Raises:
        DatasetError: the file is damaged, too large, or holds anything but lists of ids by name.
    """
    as_json, as_pickle = root / f"{SPLIT_NAME}.json", root / f"{SPLIT_NAME}.pickle"
    if as_json.is_file():
        return _as_splits(read_json(as_json, MAX_SPLIT_BYTES), as_json)
    if not as_pickle.is_file():
        return {}
    if as_pickle.stat().st_size > MAX_SPLIT_BYTES:
        raise DatasetError(f"{as_pickle} is larger than {MAX_SPLIT_BYTES:,} bytes and cannot be a split file")
    with as_pickle.open("rb") as stream:
        try:
            content = _PlainUnpickler(stream).load()
        except Exception as error:  # a damaged pickle can raise anything
            raise DatasetError(
                f"{as_pickle} cannot be read safely ({error}); convert it to {as_json.name} yourself"
            ) from error
    splits = _as_splits(content, as_pickle)
    _write_json(as_json, {name: sorted(ids) for name, ids in splits.items()})
    return splits


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers; any other class is refused, so nothing is executed."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("__builtin__", "builtins"), name) in _PLAIN_CLASSES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _as_splits(content: Any, source: Path) -> dict[str, frozenset[str]]:
    if not isinstance(content, dict) or not all(
        isinstance(ids, (list, tuple, set, frozenset)) and all(isinstance(i, (str, int)) for i in ids)
        for ids in content.values()
    ):
        raise DatasetError(f"{source} must hold lists of ids by split name; write it again")
    return {str(name): frozenset(str(i) for i in ids) for name, ids in content.items()}


def _pick_ids(root: Path, splits: dict[str, frozenset[str]], split: str | None) -> Iterable[str]:
    if split is None or split == "all":
        return sorted(entry.name for entry in (root / "Picks").iterdir() if entry.is_dir())
    if split not in splits:
        known = ", ".join(sorted(splits)) or f"none, as {SPLIT_NAME}.json is missing"
        raise DatasetError(f"{root} has no split {split!r} (there are: {known}); give one of these or 'all'")
    return sorted(splits[split])


def find_references(
    folder: str | os.PathLike[str], incomplete: Counter[str] | None = None
) -> dict[str, list[Path]]:
    """Find the reference images of products: ``<Product-ID>/*.jpg``, and single images ``<Product-ID>.jpg``.

    Args:
        folder: ``Reference_Images`` or a folder that holds it.
        incomplete: counts product folders without images.

    Returns:
        Image files by product.

    Raises:
        DatasetError: the folder is missing.
    """
    root = Path(folder)
    root = root / "Reference_Images" if (root / "Reference_Images").is_dir() else root
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; give one with <Product-ID>/*.jpg or <Product-ID>.jpg")
    references = {path.stem: [path] for path in find_images(root)}
    for entry in sorted(path for path in root.iterdir() if path.is_dir()):
        images = find_images(entry)
        if images:
            references[entry.name] = images + references.get(entry.name, [])
        elif incomplete is not None:
            incomplete["product with an empty reference folder"] += 1
    return references


def read_pick(
    root: Path, pick_id: str, references: Mapping[str, Sequence[Path]], incomplete: Counter[str]
) -> Pick:
    """Read one pick of an identification folder.

    Args:
        root: folder with ``Picks/``.
        pick_id: name of the pick's folder.
        references: reference images of every product that has some.
        incomplete: counts what the pick lacks.

    Raises:
        UnusablePickError: the pick has to be left out; the message is the reason.
    """
    folder = root / "Picks" / pick_id
    if pick_id != Path(pick_id).name or not folder.is_dir():  # ids from a split file must not lead elsewhere
        raise UnusablePickError("pick folder missing")
    container = _pick_json(folder, "container.json")
    if not container or len(container) > MAX_MANIFEST:
        raise UnusablePickError("container.json empty or too long")
    annotation = _pick_json(folder, "annotation.json")
    truth = annotation.get("GT_ID")
    if not isinstance(truth, (str, int)) or truth == "":
        raise UnusablePickError("annotation.json without GT_ID")
    views = {view: folder / f"{view}.jpg" for view in VIEWS if (folder / f"{view}.jpg").is_file()}
    if not views:
        raise UnusablePickError("pick without images")
    polygons = {view: found for view in views if (found := _polygons(annotation, view))}
    pick = Pick(pick_id, str(truth), tuple(container), views, polygons)
    for problem, present in (
        ("pick without all views", len(views) < len(VIEWS)),
        ("pick with views without polygon", len(polygons) < len(views)),
        ("pick whose product has no references", pick.product_id not in references),
        ("pick whose product is not in its container", pick.product_id not in container),
    ):
        incomplete[problem] += present
    return pick


def _pick_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = read_json(folder / name, MAX_PICK_JSON_BYTES)
    except DatasetError:
        raise UnusablePickError(f"{name} missing or not readable") from None
    if not isinstance(content, dict):
        raise UnusablePickError(f"{name} missing or not readable")
    return content


def _polygons(annotation: dict[str, Any], view: str) -> Polygons | None:
    """Outline of one view; ``polygons`` by view name, with or without the file's suffix."""
    by_view = annotation.get("polygons")
    if not isinstance(by_view, dict):
        return None
    polygons = by_view.get(view, by_view.get(f"{view}.jpg"))
    if _is_polygon(polygons):
        polygons = [polygons]
    if not isinstance(polygons, list):
        return None
    return [polygon for polygon in polygons if _is_polygon(polygon)] or None


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and 3 <= len(points) <= MAX_POLYGON_POINTS
        and all(
            isinstance(point, list)
            and len(point) == 2
            and all(isinstance(v, (int, float)) and abs(v) < MAX_COORDINATE for v in point)
            for point in points
        )
    )


def read_json(path: Path, limit: int) -> Any:
    """Parse a JSON file of at most ``limit`` bytes.

    Raises:
        DatasetError: the file is missing, too large or not JSON.
    """
    try:
        if path.stat().st_size > limit:
            raise DatasetError(f"{path} is larger than {limit:,} bytes; check the file")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} cannot be read ({error}); check the file") from error


def _write_json(path: Path, content: Any) -> None:
    """Write atomically; a read-only folder keeps its pickle, which is then converted again next time."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            json.dump(content, stream)
        Path(stream.name).replace(path)
    except OSError:
        return
