"""Where images come from: a folder with sub-folders, or Parquet files as AToMiC's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.images import IMAGE_SUFFIXES, decode_rgb, read_rgb
from mca_perception.errors import InvalidImageError, RetrievalError
from mca_perception.retrieval.store import ImageRecord

__all__ = [
    "Entry",
    "FolderSource",
    "ImageReader",
    "ImageSource",
    "ParquetSource",
    "open_image",
    "open_source",
]

MAX_IMAGES = 2_000_000_000
PARQUET = ".parquet"
CAPTION_COLUMNS = ("caption_reference_description", "caption_alt_text_description", "caption")
_ROWS_AT_ONCE = 256


class Entry(NamedTuple):
    """An image to be indexed.

    Attributes:
        record: its id, its place, what is known about it.
        content: the encoded image, where it does not lie in a file of its own.
    """

    record: ImageRecord
    content: bytes | None = None

    def load(self) -> NDArray[np.uint8]:
        """The image uint8 ``[H, W, 3]`` RGB.

        Raises:
            InvalidImageError: it cannot be read.
        """
        if self.content is None:
            return read_rgb(self.record.uri, oriented=True)
        return decode_rgb(self.content, self.record.image_id, oriented=True)


class ImageSource(Protocol):
    """Images in a fixed order."""

    @property
    def description(self) -> str:
        """Where they are."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def records(self) -> Iterator[Sequence[ImageRecord]]:
        """What is known about the images in order, in groups; the images themselves are not read for it."""
        ...

    def entries(self, wanted: set[str] | None = None) -> Iterator[Entry]:
        """Images in order; only those wanted, if given."""
        ...


class FolderSource:
    """All images below a folder; an id is the path below it.

    Raises:
        RetrievalError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise RetrievalError(f"{folder} is not a folder of images; check the path")
        self.description = str(folder.resolve())
        self._root = folder.resolve()
        self._names: list[str] = []
        for place, folders, files in os.walk(self._root):
            folders.sort()
            below = Path(place).relative_to(self._root)
            self._names += [
                (below / name).as_posix() for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES
            ]
        self._names.sort()
        if not self._names:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            raise RetrievalError(f"{folder} holds no image ({known}), nor do its sub-folders; check the path")

    def __len__(self) -> int:
        return len(self._names)

    def records(self) -> Iterator[Sequence[ImageRecord]]:
        """Paths below the folder, sorted."""
        for start in range(0, len(self._names), _ROWS_AT_ONCE):
            yield [self._record(name) for name in self._names[start : start + _ROWS_AT_ONCE]]

    def entries(self, wanted: set[str] | None = None) -> Iterator[Entry]:
        """Images; nothing is read before they are loaded."""
        for name in self._names:
            if wanted is None or name in wanted:
                yield Entry(self._record(name))

    def _record(self, name: str) -> ImageRecord:
        return ImageRecord(name, str(self._root / name))


class ParquetSource:
    """Parquet files with a column ``image`` of encoded images, and ``image_id`` if they have ids.

    ``image`` holds bytes, or a structure with ``bytes`` as Hugging Face datasets write it. Captions are kept with the
    image, one language (English, else the first) of each column.

    Raises:
        RetrievalError: pyarrow is not installed, a file cannot be read, or has no column ``image``.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise RetrievalError(
                "Parquet files need pyarrow: pip install -c constraints.txt -e '.[retrieval]'"
            ) from error
        self.description = str(path.resolve())
        files = sorted(path.glob(f"*{PARQUET}")) if path.is_dir() else [path]
        self._tables: list[tuple[Path, Any]] = []
        for file in files:
            try:
                opened = parquet.ParquetFile(file)
            except (OSError, pyarrow.ArrowException) as error:
                raise RetrievalError(f"{file} cannot be read as Parquet ({error}); check the file") from error
            if "image" not in opened.schema_arrow.names:
                raise RetrievalError(f"{file} has no column image; give files of images")
            self._tables.append((file.resolve(), opened))
        if not self._tables:
            raise RetrievalError(f"{path} holds no {PARQUET} file; check the path")

    def __len__(self) -> int:
        return sum(table.metadata.num_rows for _, table in self._tables)

    def records(self) -> Iterator[Sequence[ImageRecord]]:
        """Ids, places and captions."""
        for records, _ in self._read():
            yield records

    def entries(self, wanted: set[str] | None = None) -> Iterator[Entry]:
        """Images with what is known about them."""
        for records, contents in self._read("image"):
            for record, content in zip(records, contents, strict=True):
                if wanted is None or record.image_id in wanted:
                    yield Entry(record, _bytes(content))

    def _read(self, *more: str) -> Iterator[tuple[list[ImageRecord], list[Any]]]:
        """Records, and what stands in the column ``image`` where that is asked for."""
        for file, table in self._tables:
            names = table.schema_arrow.names
            columns = [name for name in ("image_id", "language", *CAPTION_COLUMNS, *more) if name in names]
            row = 0
            for rows in _rows(table, columns):
                yield (
                    [_record(file, row + i, values) for i, values in enumerate(rows)],
                    [values.get("image") for values in rows],
                )
                row += len(rows)


def open_source(path: str | os.PathLike[str]) -> ImageSource:
    """A Parquet file, a folder with Parquet files, or a folder of images.

    Raises:
        RetrievalError: it is neither.
    """
    source = Path(path)
    if source.suffix == PARQUET or (source.is_dir() and next(source.glob(f"*{PARQUET}"), None) is not None):
        return ParquetSource(source)
    return FolderSource(source)


class ImageReader:
    """Opens images at the places that records name.

    The Parquet file used last stays open, and the row group read last in memory.
    """

    def __init__(self) -> None:
        self._file = ""
        self._table: Any = None
        self._group = -1
        self._images: Any = None

    def open(self, uri: str) -> NDArray[np.uint8]:
        """The image uint8 ``[H, W, 3]`` RGB, upright.

        Raises:
            InvalidImageError: it is not there any more, or cannot be read.
        """
        file, separator, row = uri.rpartition("#")
        if not separator or not file.endswith(PARQUET) or not row.isdigit():
            return read_rgb(uri, oriented=True)
        from pyarrow import ArrowException

        try:
            content = self._row(file, int(row))
        except IndexError as error:
            raise InvalidImageError(f"{uri} is beyond the end of the file; index it again") from error
        except (OSError, ArrowException) as error:
            raise InvalidImageError(f"{uri} cannot be read ({error}); check the file") from error
        return decode_rgb(content, uri, oriented=True)

    def _row(self, file: str, number: int) -> bytes:
        from pyarrow import parquet

        if file != self._file:
            self._table, self._file, self._group = parquet.ParquetFile(file), file, -1
        for group in range(self._table.num_row_groups):
            rows = self._table.metadata.row_group(group).num_rows
            if number < rows:
                if group != self._group:
                    self._images = self._table.read_row_group(group, columns=["image"]).column(0)
                    self._group = group
                return _bytes(self._images[number].as_py())
            number -= rows
        raise IndexError(number)


def open_image(uri: str) -> NDArray[np.uint8]:
    """One image, as :meth:`ImageReader.open`."""
    return ImageReader().open(uri)


def _rows(table: Any, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    if columns:
        yield from (
            part.to_pylist() for part in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
        )
    else:
        yield [{}] * table.metadata.num_rows


def _record(file: Path, row: int, values: dict[str, Any]) -> ImageRecord:
    """A row of a Parquet file; it is named after its place where it has no id."""
    image_id = str(values.get("image_id") or f"{file.name}#{row}")
    return ImageRecord(image_id, f"{file}#{row}", _captions(values))


def _bytes(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""


def _captions(values: dict[str, Any]) -> str:
    """Captions in English, else in the first language, as a JSON object."""
    languages = values.get("language") or []
    captions: dict[str, str] = {}
    for name in CAPTION_COLUMNS:
        value = values.get(name)
        texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        order = sorted(range(len(texts)), key=lambda i: (i >= len(languages) or languages[i] != "en", i))
        chosen = next((texts[i] for i in order if texts[i]), None)
        if chosen:
            captions[name] = chosen
    return json.dumps(captions, ensure_ascii=False)
