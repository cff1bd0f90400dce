"""``mca synth picks``: picks with pre- and post-pick views in ARMBench's identification layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth import picks, writer
from mca_perception.datasets.synth.catalogue import LINE_LENGTH, Catalogue
from mca_perception.datasets.synth.contents import SUBSETS
from mca_perception.datasets.synth.effects import encode_jpeg
from mca_perception.datasets.synth.polygons import trace
from mca_perception.datasets.synth.tote_set import manifest_products
from mca_perception.datasets.synth.user_catalogue import SHEET_NAME, UserCatalogue, open_catalogue
from mca_perception.errors import DatasetError

SPLIT_FILE = "train-test-split.json"
SETTINGS_FILE = "synth-picks.json"
MIN_PRODUCTS = 200
MIN_POOL = 16


@dataclass(frozen=True)
class PickSettings:
    """Everything that decides the content of a set of picks."""

    out: Path
    count: int
    seed: int
    products: int | None = None
    catalogue_seed: int | None = None
    catalog: Path | None = None
    test_fraction: float = 0.3

    def check(self) -> None:
        """Raise DatasetError for settings out of range."""
        writer.check_count("--count", self.count)
        writer.check_seed("--seed", self.seed)
        writer.check_seed(
            "--catalogue-seed", self.seed if self.catalogue_seed is None else self.catalogue_seed
        )
        if self.products is not None and not 0 <= self.products <= writer.MAX_COUNT:
            raise DatasetError(f"--products {self.products}: must be 0 to {writer.MAX_COUNT:,}")
        if not 0 <= self.test_fraction <= 1:
            raise DatasetError(f"--test-fraction {self.test_fraction:g}: must be 0 to 1")

    def open_catalogue(self) -> UserCatalogue:
        """The catalogue these settings name."""
        seed = self.seed if self.catalogue_seed is None else self.catalogue_seed
        size = max(MIN_PRODUCTS, self.count // 3) if self.products is None else self.products
        return open_catalogue(seed, size, self.catalog)

    def record(self, catalogue: Catalogue) -> dict[str, Any]:
        """Settings as stored beside the data."""
        seed, products, *_ = catalogue.recipe()
        return {
            "command": "picks",
            "count": self.count,
            "seed": self.seed,
            "products": products,
            "catalogue_seed": seed,
            "test_fraction": self.test_fraction,
            "catalog": [photo.product_id for photo in catalogue.photos],
        }


@dataclass(frozen=True)
class ContainerPlan:
    """Container ``index`` with picks ``first`` .. ``first + picks - 1`` from the products of one split."""

    index: int
    first: int
    picks: int
    test: bool


@lru_cache(maxsize=4)
def product_pools(seed: int, size: int, test_fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Disjoint (train, test) product indices of a catalogue, each sorted.

    Line-mates stay together, so that no test product has a twin among the train products.

    Raises:
        DatasetError: a pool that is needed has fewer than 16 products.
    """
    lines = np.arange(size) // LINE_LENGTH
    order = np.random.default_rng([seed, 21]).permutation(int(lines[-1]) + 1)
    in_test = np.isin(lines, order[: round(len(order) * test_fraction)])
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    for name, pool, share in (("train", train, 1 - test_fraction), ("test", test, test_fraction)):
        if share > 0 and len(pool) < MIN_POOL:
            raise DatasetError(
                f"--products {size} with --test-fraction {test_fraction:g}: only {len(pool)} {name} "
                f"products, at least {MIN_POOL} are needed; raise --products"
            )
    return train, test


def plan_containers(settings: PickSettings) -> Iterator[ContainerPlan]:
    """Containers of 1 to 5 picks that add up to ``count``, with the wanted share of test picks."""
    rng = np.random.default_rng([settings.seed, 22])
    first = tested = index = 0
    while first < settings.count:
        number = min(int(rng.choice([1, 2, 3, 4, 5], p=[0.05, 0.1, 0.25, 0.3, 0.3])), settings.count - first)
        test = tested + number / 2 < settings.test_fraction * (first + number)
        yield ContainerPlan(index, first, number, test)
        first, tested, index = first + number, tested + number * test, index + 1


def pick_id(seed: int, number: int) -> str:
    """Pick-ID: a string of 12 characters."""
    return f"{hashlib.blake2b(f'picks/{seed}'.encode(), digest_size=2).hexdigest().upper()}{number:08d}"


def write_container(
    settings: PickSettings, catalogue: Catalogue, plan: ContainerPlan
) -> tuple[bool, list[int], list[str]]:
    """Worker task: write the picks of a container; returns (test, indices of its products, pick ids)."""
    pool = product_pools(catalogue.seed, len(catalogue), settings.test_fraction)[int(plan.test)]
    rng = np.random.default_rng([settings.seed, 23, plan.index])
    container = picks.fill_container(catalogue, pool, plan.picks, rng)
    contents = manifest_products(catalogue, container.scene.contents, rng, pool)
    manifest = {product.product_id: product.manifest_entry() for product in contents}
    names = [pick_id(settings.seed, plan.first + number) for number in range(plan.picks)]
    for number, name in enumerate(names):
        folder = settings.out / "Picks" / name
        if not (folder / "annotation.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write_pick(
                folder,
                catalogue,
                container,
                number,
                manifest,
                np.random.default_rng([settings.seed, 24, plan.first + number]),
            )
    return plan.test, [product.index for product in contents], names


def _write_pick(
    folder: Path,
    catalogue: Catalogue,
    container: picks.Container,
    number: int,
    manifest: dict[str, Any],
    rng: np.random.Generator,
) -> None:
    """Write the files of one pick; the annotation comes last and marks the pick as complete."""
    instance = container.picked[number]
    views = {picks.PRE_PICK: picks.pre_pick_view(container.scene, instance, rng)}
    for kind in picks.POST_PICK:
        view = picks.post_pick_view(catalogue, instance.product, kind, rng)
        if view is not None:
            views[kind] = view
    polygons = {}
    for kind, view in views.items():
        writer.write_bytes(folder / f"{kind}.jpg", encode_jpeg(view.image, view.jpeg_quality))
        polygons[kind] = [
            [polygon[i : i + 2] for i in range(0, len(polygon), 2)] for polygon in trace(view.mask)
        ]
    writer.write_json(folder / "container.json", manifest)
    writer.write_json(
        folder / "annotation.json", {"GT_ID": instance.product.product_id, "polygons": polygons}
    )


def write_picks(
    settings: PickSettings, workers: int, progress: writer.Progress | None = None
) -> dict[str, Any]:
    """Write or continue a set of picks below ``settings.out``.

    Returns:
        Figures: picks, containers, products, test picks, mean manifest size, picks per second.

    Raises:
        DatasetError: settings out of range, or the folder holds something else.
    """
    settings.check()
    writer.check_count("--workers", workers, writer.MAX_WORKERS)
    user_catalogue = settings.open_catalogue()
    catalogue = user_catalogue.catalogue
    product_pools(catalogue.seed, len(catalogue), settings.test_fraction)
    writer.claim_folder(
        settings.out, settings.record(catalogue), SETTINGS_FILE, {*SUBSETS, "Reference_Images", SHEET_NAME}
    )
    user_catalogue.write_sheet(settings.out)
    plans = list(plan_containers(settings))
    started = perf_counter()
    results = writer.run_parallel(
        partial(write_container, settings), plans, len(plans), catalogue, workers, progress
    )
    elapsed = perf_counter() - started
    split: dict[str, list[str]] = {
        "trainset": [],
        "testset": [],
        "trainset-objects": [],
        "testset-objects": [],
    }
    used: set[int] = set()
    for test, indices, names in sorted(results, key=lambda result: result[2]):
        part = "testset" if test else "trainset"
        split[part] += names
        split[f"{part}-objects"] += [catalogue.product(index).product_id for index in indices]
        used.update(indices)
    split = {name: sorted(set(values)) for name, values in split.items()}
    writer.write_json(settings.out / SPLIT_FILE, split)
    references = [(str(settings.out / "Reference_Images"), index) for index in sorted(used)]
    writer.run_parallel(writer.write_references, references, len(references), catalogue, workers, progress)
    sizes = [len(indices) for _, indices, names in results for _ in names]
    return {
        "folder": str(settings.out),
        "picks": settings.count,
        "containers": len(plans),
        "products": len(used),
        "test_picks": len(split["testset"]),
        "test_products": len(split["testset-objects"]),
        "manifest_size": round(float(np.mean(sizes)), 2),
        **user_catalogue.figures(),
        "picks_per_second": round(settings.count / max(elapsed, 1e-9), 2),
    }
