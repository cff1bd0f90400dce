"""Readers of AToMiC (specification of retrieval, section 4) and of plain files of documents.

A folder holds ``texts/``, ``images/`` and ``qrels/``: Parquet files with the published columns, or for the qrels also
``SPLIT.qrels`` text files. Files are streamed with the columns that are asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mca_perception.errors import DatasetError

__all__ = [
    "BASE_IMAGES",
    "DOCUMENT_FIELDS",
    "LARGE_IMAGES",
    "Qrels",
    "documents_of",
    "pool_of",
    "read_documents",
    "read_image_ids",
    "read_qrels",
    "split_of_image",
    "write_run",
]

Qrels = dict[str, dict[str, int]]
"""Relevance by text id and image id."""
SPLITS = ("train", "validation", "test")
BASE_IMAGES = 3_410_919
"""Images of the base pool as published: those relevant to at least one text."""
LARGE_IMAGES = 11_019_202
MAX_LINE_BYTES = 8_000_000
MAX_RUN_ITEMS = 1000
SMALLEST_STEP = 1e-6
"""Between the scores of a run."""
DOCUMENT_FIELDS = {
    "text": "text",
    "page_title": "page_title",
    "section_title": "section_title",
    "hierachy": "hierarchy",  # spelt so in the published files
    "hierarchy": "hierarchy",
    "context_section_description": "section_description",
    "section_description": "section_description",
    "context_page_description": "page_description",
    "page_description": "page_description",
}
"""Field of a document by column or key."""
_ID_COLUMNS = ("text_id", "id")


def read_documents(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Documents of a file or a folder of Parquet files: id and the fields that are not empty.

    ``.jsonl``: an object per line with the keys of `DOCUMENT_FIELDS`; ``.parquet``: those as columns; any other file:
    a document per line of plain text. Ids are ``text_id`` or ``id``, else the line's number.

    Raises:
        DatasetError: the file is missing or a line cannot be read.
    """
    source = Path(path)
    if source.is_dir() or source.suffix == ".parquet":
        for number, row in enumerate(_rows(source, (*_ID_COLUMNS, *DOCUMENT_FIELDS))):
            yield _document(row, number)
        return
    try:
        stream = source.open("rb")
    except OSError as error:
        raise DatasetError(f"{source} cannot be read ({error.strerror}); check the path") from error
    with stream:
        for number, line in enumerate(stream, start=1):
            if len(line) > MAX_LINE_BYTES:
                raise DatasetError(
                    f"{source}, line {number} has more than {MAX_LINE_BYTES:,} bytes; split it"
                )
            if not line.strip():
                continue
            if source.suffix != ".jsonl":
                yield str(number), {"text": line.decode("utf-8", "replace").strip()}
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{source}, line {number} is not JSON ({error}); correct it") from error
            if not isinstance(fields, dict):
                raise DatasetError(f"{source}, line {number} is no JSON object; correct it")
            yield _document(fields, number)


def documents_of(data: str | os.PathLike[str], wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Fields of those texts of an AToMiC folder that are wanted, by text id.

    Raises:
        DatasetError: a file cannot be read.
    """
    found = {name: fields for name, fields in read_documents(Path(data) / "texts") if name in wanted}
    if not found:
        raise DatasetError(
            f"{Path(data) / 'texts'} has none of the {len(wanted)} texts of the qrels; check the split"
        )
    return found


def read_qrels(data: str | os.PathLike[str], split: str) -> Qrels:
    """Relevance judgements of a split: ``qrels/*SPLIT*.parquet``, or ``qrels/SPLIT.qrels`` with four fields per line.

    Raises:
        DatasetError: they are missing or a line cannot be read.
    """
    folder = Path(data) / "qrels"
    qrels: Qrels = {}
    text = folder / f"{split}.qrels"
    if text.is_file():
        for number, line in enumerate(text.read_text(encoding="utf-8").splitlines(), start=1):
            parts = line.split()
            if not parts:
                continue
            if len(parts) != 4 or not parts[3].lstrip("-").isdigit():
                raise DatasetError(
                    f"{text}, line {number} is not `text_id Q0 image_id relevance`; correct it"
                )
            qrels.setdefault(parts[0], {})[parts[2]] = int(parts[3])
        return qrels
    files = sorted(folder.glob(f"*{split}*.parquet"))
    if not files:
        raise DatasetError(
            f"{folder} has no qrels of split {split!r}; give a folder with qrels/{split}*.parquet"
        )
    for file in files:
        for row in _rows(file, ("text_id", "image_id", "rel")):
            qrels.setdefault(str(row["text_id"]), {})[str(row["image_id"])] = int(row["rel"])
    return qrels


def split_of_image(data: str | os.PathLike[str]) -> dict[str, str]:
    """For every image of the qrels the first of train, validation and test that has it; all others are ``other``.

    Raises:
        DatasetError: there are no qrels at all.
    """
    splits: dict[str, str] = {}
    for split in SPLITS:
        try:
            qrels = read_qrels(data, split)
        except DatasetError:
            continue
        for items in qrels.values():
            for image in items:
                splits.setdefault(image, split)
    if not splits:
        raise DatasetError(f"{Path(data) / 'qrels'} holds no qrels; check the folder")
    return splits


def read_image_ids(data: str | os.PathLike[str]) -> Iterator[str]:
    """Ids of all images; the images themselves are not read."""
    return (str(row["image_id"]) for row in _rows(Path(data) / "images", ("image_id",)))


def pool_of(data: str | os.PathLike[str], pool: str, split: str) -> set[str] | None:
    """Ids of the images that a search may return; None for all of them.

    Args:
        data: folder.
        pool: ``small``: those of the split's own qrels; ``base``: those of any qrels; ``large``: all.
        split: of the qrels.

    Raises:
        DatasetError: there is no such pool.
    """
    if pool == "large":
        return None
    if pool == "base":
        return set(split_of_image(data))
    if pool == "small":
        return {image for items in read_qrels(data, split).values() for image in items}
    raise DatasetError(f"pool {pool!r} is not known; choose small, base or large")


def write_run(
    path: str | os.PathLike[str], run: Mapping[str, Sequence[tuple[str, float]]], name: str = "mca"
) -> None:
    """Write rankings as a TREC run: ``topic Q0 item rank score name``, at most 1000 items per topic.

    trec_eval sorts by score and would put equal scores into another order: each is written below the one before.

    Args:
        path: the file, written atomically.
        run: items with scores by topic, best first.
        name: of the run, without spaces.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        for topic, items in run.items():
            lowest = float("inf")
            for rank, (item, score) in enumerate(items[:MAX_RUN_ITEMS], start=1):
                lowest = score = min(score, lowest - SMALLEST_STEP)
                stream.write(f"{topic} Q0 {item} {rank} {score:.6f} {name}\n")
    part.replace(target)


def _document(row: Mapping[str, Any], number: int) -> tuple[str, dict[str, Any]]:
    fields: dict[str, Any] = {}
    for name, field in DOCUMENT_FIELDS.items():
        value = row.get(name)
        if field == "hierarchy":
            if isinstance(value, list):
                fields[field] = tuple(str(entry) for entry in value if entry)
        elif isinstance(value, str) and value:
            fields[field] = value
    identifier = next((row[name] for name in _ID_COLUMNS if row.get(name) is not None), number)
    return str(identifier), fields


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of Parquet files with those of the columns that they have."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(
            "Parquet files need pyarrow: pip install -c constraints.txt -e '.[retrieval]'"
        ) from error
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DatasetError(f"{path} holds no .parquet file; check the folder")
    for file in files:
        try:
            opened = parquet.ParquetFile(file)
            names = [name for name in columns if name in opened.schema_arrow.names]
            for batch in opened.iter_batches(columns=names):
                yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise DatasetError(f"{file} cannot be read as Parquet ({error}); check the file") from error
