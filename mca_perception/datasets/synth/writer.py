"""Files of a synthesised data set: settings, atomic writes, worker processes, reference images."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import IO, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth.catalogue import Catalogue, Product
from mca_perception.datasets.synth.effects import encode_jpeg
from mca_perception.datasets.synth.photos import Photo
from mca_perception.datasets.synth.textures import Image
from mca_perception.errors import DatasetError

# Raised when equal settings begin to give other bytes, so that no set continues with another generator.
FORMAT = 3
MAX_COUNT = 1_000_000
MAX_WORKERS = 256
MAX_REFERENCES = 6
_CHUNK = 8
Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def check_count(name: str, value: int, limit: int = MAX_COUNT) -> None:
    """Raise DatasetError unless 1 <= value <= limit."""
    if not 1 <= value <= limit:
        raise DatasetError(f"{name} {value}: must be 1 to {limit:,}; choose another number")


def check_seed(name: str, value: int) -> None:
    """Raise DatasetError unless 0 <= value < 2**63."""
    if not 0 <= value < 2**63:
        raise DatasetError(f"{name} {value}: must be 0 or more and below 2**63; choose another seed")


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` that takes its name when the block ends well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    with atomic(path) as file:
        file.write(data)


def write_json(path: Path, content: object) -> None:
    """Write compact UTF-8 JSON atomically."""
    write_bytes(path, json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())


# The "up" filter alone: a third of the time of trying all filters, at nearly the same size.
_PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)


def encode_ids(instance_ids: NDArray[np.uint16]) -> bytes:
    """16-bit grey PNG of an instance-id image ``[H, W]`` uint16."""
    _, data = cv2.imencode(".png", instance_ids, _PNG_OPTIONS)
    return data.tobytes()


def claim_folder(
    folder: Path, settings: dict[str, Any], name: str = "synth.json", neighbours: Container[str] = ()
) -> None:
    """Make ``folder`` the home of a data set with these settings, or continue one made with the same.

    Args:
        folder: where the data set lives.
        settings: everything that decides its content.
        name: file that keeps the settings.
        neighbours: entries of other data sets that may lie in the same folder.

    Raises:
        DatasetError: the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"format": FORMAT, **settings}
    path = folder / name
    if path.is_file():
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DatasetError(f"{path}: not JSON ({error}); choose an empty folder") from error
        if found != wanted:
            changed = (
                sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
                if isinstance(found, dict)
                else ["all"]
            )
            raise DatasetError(
                f"{folder}: holds a data set made with other settings ({', '.join(changed)}); "
                "choose an empty folder or repeat the same settings"
            )
        return
    if any(entry.name not in neighbours for entry in folder.iterdir()):
        raise DatasetError(f"{folder}: not empty and not made by this command; choose an empty folder")
    write_bytes(path, (json.dumps(wanted, indent=2, ensure_ascii=False) + "\n").encode())


_worker_catalogue: Catalogue | None = None


def _start_worker(seed: int, size: int, photos: tuple[Photo, ...], photo_share: float | None) -> None:
    global _worker_catalogue
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    _worker_catalogue = Catalogue(seed, size, photos, photo_share)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and go on with what it has."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Callable[[Catalogue, Any], Result], items: list[Any]) -> list[Result]:
    assert _worker_catalogue is not None
    return [task(_worker_catalogue, item) for item in items]


def run_parallel(
    task: Callable[[Catalogue, Any], Result],
    items: Iterable[Any],
    total: int,
    catalogue: Catalogue,
    workers: int,
    progress: Progress | None = None,
) -> list[Result]:
    """Run ``task(catalogue, item)`` for every item in ``workers`` processes; results come in any order."""
    results: list[Result] = []
    if workers == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            for item in items:
                results.append(task(catalogue, item))
                if progress:
                    progress(len(results), total)
        finally:
            cv2.setNumThreads(threads)
        return results
    source = iter(items)
    chunks = iter(lambda: list(islice(source, _CHUNK)), [])
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=catalogue.recipe()
    ) as pool:
        pending: set[Future[list[Result]]] = {
            pool.submit(_work, task, chunk) for chunk in islice(chunks, workers * 3)
        }
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                results += future.result()
                pending |= {pool.submit(_work, task, chunk) for chunk in islice(chunks, 1)}
            if progress:
                progress(len(results), total)
    return results


def reference_count(catalogue: Catalogue, product: Product) -> int:
    """How many reference images a product has: mostly six, sometimes fewer."""
    rng = np.random.default_rng([catalogue.seed, product.index, 6])
    return MAX_REFERENCES if rng.random() < 0.85 else int(rng.integers(1, MAX_REFERENCES))


def reference_image(catalogue: Catalogue, product: Product, number: int) -> Image:
    """Pack-shot ``number`` (1 to 6) on a plain light background, RGB uint8, 200 to 300 px a side."""
    rng = np.random.default_rng([catalogue.seed, product.index, 7, number])
    height, width = (int(value) for value in rng.integers(200, 301, 2))
    sprite = catalogue.render(
        product, rng, int(min(height, width) * rng.uniform(0.75, 0.95)), upright=number == 1
    )
    factor = min(1.0, (width - 8) / sprite.shape[1], (height - 8) / sprite.shape[0])
    if factor < 1:
        smaller = cv2.resize(sprite, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        sprite = np.asarray(smaller, np.uint8)
    tall, wide = sprite.shape[:2]
    y, x = (height - tall) // 2, (width - wide) // 2
    alpha = np.zeros((height, width), np.float32)
    alpha[y : y + tall, x : x + wide] = sprite[:, :, 3] / np.float32(255)
    shadow = cv2.GaussianBlur(alpha, (0, 0), 5)
    shade = float(rng.uniform(225, 255)) * (1 - 0.22 * shadow)
    image = np.repeat(shade[..., None], 3, 2)
    region, share = image[y : y + tall, x : x + wide], sprite[:, :, 3:] / np.float32(255)
    region += (sprite[:, :, :3] - region) * share
    image += rng.normal(0, 1.2, (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_references(catalogue: Catalogue, job: tuple[str, int]) -> int:
    """Worker task: write the missing reference images of product ``job[1]`` below folder ``job[0]``."""
    root, index = job
    product = catalogue.product(index)
    folder = Path(root) / product.product_id
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, reference_count(catalogue, product) + 1):
        path = folder / f"{number}.jpg"
        if not path.exists():
            write_bytes(path, encode_jpeg(reference_image(catalogue, product, number), 92))
    return index
