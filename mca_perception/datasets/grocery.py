"""Reader of the Grocery Store Dataset (Klasson et al., WACV 2019) as an identification task.

``classes.csv`` names every class with its iconic image; ``NAME.txt`` lists photos, a line each: ``path, class, coarse
class``. A class is a product, its iconic image and some of its training photos are the references, and a photo is a
pick of one view among all products.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np

from mca_perception.datasets.armbench import VIEWS, IdentificationIndex, Pick
from mca_perception.errors import DatasetError

__all__ = ["REFERENCE_SPLIT", "is_grocery", "read_grocery"]

CLASSES = "classes.csv"
REFERENCE_SPLIT = "train"
MAX_LIST_BYTES = 64_000_000


def is_grocery(data: str | os.PathLike[str]) -> bool:
    """Whether a folder holds this data set."""
    return (Path(data) / CLASSES).is_file()


def read_grocery(
    data: str | os.PathLike[str], split: str, *, natural_references: int = 0, seed: int = 0
) -> IdentificationIndex:
    """Read the photos of a split, with references for every class.

    Args:
        data: folder with ``classes.csv`` and the lists.
        split: name of the list, without ``.txt``.
        natural_references: photos of ``train.txt`` per class that are references beside the iconic image; fewer where
            the class has fewer. In the split ``train`` they are no picks.
        seed: of their choice; the first of a larger choice are those of a smaller one.

    Returns:
        Products by class name, the iconic image first among their references.

    Raises:
        DatasetError: a list is missing, too large or not readable, or no photo is usable.
    """
    root = Path(data)
    if not is_grocery(root):
        raise DatasetError(f"{root} has no {CLASSES}; give the folder of the Grocery Store data set")
    skipped: Counter[str] = Counter()
    incomplete: Counter[str] = Counter()
    names, references = _read_classes(root, incomplete)
    photos = _read_photos(root, split, names, skipped)
    if natural_references:
        natural = _read_photos(root, REFERENCE_SPLIT, names, incomplete)
        for name, chosen in _choose(natural, list(references), natural_references, seed).items():
            references[name] += [root / path for path in chosen]
            for path in photos.keys() & set(chosen):
                del photos[path]
                skipped["photo used as a reference"] += 1
    if not photos:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it is empty"
        raise DatasetError(f"{root / split}.txt has no usable photo ({reasons}); check the list")
    container = tuple(names.values())
    picks = tuple(
        Pick(path, product, container, {VIEWS[0]: root / path}, {})
        for path, product in sorted(photos.items())
    )
    for pick in picks:
        incomplete["photo whose class has no references"] += not references[pick.product_id]
    usable = {product: paths for product, paths in references.items() if paths}
    return IdentificationIndex(root, picks, usable, {}, skipped, +incomplete)


def _read_classes(root: Path, incomplete: Counter[str]) -> tuple[dict[str, str], dict[str, list[Path]]]:
    """Class names by id, and the iconic image of every class that has one."""
    names: dict[str, str] = {}
    references: dict[str, list[Path]] = {}
    for row in _rows(root / CLASSES)[1:]:
        if len(row) < 5 or not row[0].strip() or row[1].strip() in names or row[0].strip() in references:
            incomplete["row of classes.csv that is short or repeated"] += 1
            continue
        name = names[row[1].strip()] = row[0].strip()
        iconic = _confined(root, row[4].strip().lstrip("/"))
        references[name] = [root / iconic] if iconic else []
        incomplete["class without an iconic image"] += iconic is None
    return names, references


def _read_photos(root: Path, split: str, names: dict[str, str], skipped: Counter[str]) -> dict[str, str]:
    """Class names by the photo's path below the folder."""
    if split != Path(split).name or not (root / f"{split}.txt").is_file():
        known = ", ".join(sorted(path.stem for path in root.glob("*.txt"))) or "none"
        raise DatasetError(f"{root} has no list {split}.txt (there are: {known}); choose one of these")
    photos: dict[str, str] = {}
    for row in _rows(root / f"{split}.txt"):
        path = _confined(root, row[0].strip())
        if len(row) < 2:
            skipped["line that is not path, class, coarse class"] += 1
        elif row[1].strip() not in names:
            skipped[f"photo of a class that {CLASSES} does not have"] += 1
        elif path is None:
            skipped["photo missing or outside the folder"] += 1
        elif path in photos:
            skipped["photo listed twice"] += 1
        else:
            photos[path] = names[row[1].strip()]
    return photos


def _choose(natural: dict[str, str], names: list[str], count: int, seed: int) -> dict[str, list[str]]:
    """``count`` photos of every class, by its name."""
    by_class: dict[str, list[str]] = {name: [] for name in names}
    for path, name in sorted(natural.items()):
        by_class[name].append(path)
    chosen = {}
    for number, (name, candidates) in enumerate(by_class.items()):
        order = np.random.default_rng((seed, number)).permutation(len(candidates))
        chosen[name] = [candidates[i] for i in order[:count]]
    return chosen


def _confined(root: Path, name: str) -> str | None:
    """A file below the folder, as a path relative to it; None when it is missing or named elsewhere."""
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts:
        return None
    try:
        return path.as_posix() if (root / path).is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def _rows(path: Path) -> list[list[str]]:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_LIST_BYTES:,} bytes; split it")
        return [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); check the file") from error
