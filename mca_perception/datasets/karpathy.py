"""Reader of Karpathy's split files for COCO and Flickr30k: images with their captions."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mca_perception.errors import DatasetError

__all__ = ["CaptionedImage", "KarpathySplit", "read_karpathy"]

MAX_BYTES = 2_000_000_000
PARTS_OF_TRAIN = ("train", "restval")


@dataclass(frozen=True)
class CaptionedImage:
    """An image file and its captions, at least one."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class KarpathySplit:
    """Images of a split in file order, and what was left out, by reason."""

    images: tuple[CaptionedImage, ...]
    skipped: Counter[str] = field(default_factory=Counter)


def read_karpathy(
    file: str | os.PathLike[str],
    split: str,
    *,
    images: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> KarpathySplit:
    """Read ``dataset_coco.json``, ``dataset_flickr30k.json`` or another file of that form.

    Args:
        file: the JSON file: ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}``.
        split: ``train`` (with COCO's ``restval``), ``val`` or ``test``.
        images: folder that the file names are relative to; the JSON file's own by default.
        limit: read only so many images.

    Raises:
        DatasetError: the file is missing, too large or of another form, or no image of the split is usable.
    """
    source = Path(file)
    try:
        if source.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{source} is larger than {MAX_BYTES:,} bytes; this is no Karpathy split file")
        content = json.loads(source.read_text(encoding="utf-8"))
        entries = content["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{source} cannot be read as a Karpathy split file ({error}); check it") from error
    root = Path(images) if images is not None else source.parent
    wanted = PARTS_OF_TRAIN if split == "train" else (split,)
    skipped: Counter[str] = Counter()
    found: list[CaptionedImage] = []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("split") not in wanted:
            continue
        name = Path(str(entry.get("filepath") or ""), str(entry.get("filename") or ""))
        captions = tuple(_captions(entry.get("sentences")))
        if not captions:
            skipped["image without a caption"] += 1
        elif name.is_absolute() or ".." in name.parts or not (root / name).is_file():
            skipped["image missing or outside the folder"] += 1
        else:
            found.append(CaptionedImage(root / name, captions))
        if limit is not None and len(found) >= limit:
            break
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "none of that split"
        raise DatasetError(
            f"{source} has no usable image of split {split!r} ({reasons}); check split and folder"
        )
    return KarpathySplit(tuple(found), skipped)


def _captions(sentences: object) -> list[str]:
    raw = (
        (entry.get("raw") for entry in sentences if isinstance(entry, dict))
        if isinstance(sentences, list)
        else ()
    )
    return [text.strip() for text in raw if isinstance(text, str) and text.strip()]
