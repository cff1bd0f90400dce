"""``mca synth totes``: scenes, exact masks, manifests and COCO files in ARMBench's segmentation layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mca_perception.datasets.synth import writer
from mca_perception.datasets.synth.catalogue import Catalogue, Product
from mca_perception.datasets.synth.contents import MIXED, SUBSETS, ObjectRange, parse_objects
from mca_perception.datasets.synth.effects import encode_jpeg
from mca_perception.datasets.synth.geometry_files import FOLDERS, write_geometry
from mca_perception.datasets.synth.polygons import trace
from mca_perception.datasets.synth.totes import HEIGHT, WIDTH, Scene, render_scene
from mca_perception.datasets.synth.user_catalogue import UserCatalogue, open_catalogue
from mca_perception.errors import DatasetError

SPLITS = ("train", "val", "test")
DEFAULT_SPLIT = "train=0.7,val=0.15,test=0.15"
OBJECT_ID, TOTE_ID = 1, 2
CATEGORIES = [{"id": OBJECT_ID, "name": "Object"}, {"id": TOTE_ID, "name": "Tote"}]
# Annotation ids follow from the scene number: a scene holds at most MAX_OBJECTS = 60 objects and the tote.
_IDS_PER_IMAGE = 64
SMALL_AREA = WIDTH * HEIGHT / 64
_PARTS = ".parts"
# Fewest labels of each group in which the figures count scenes.
_LABEL_GROUPS = {"0-4": 0, "5-9": 5, "10-14": 10, "15-25": 15, "26+": 26}


@dataclass(frozen=True)
class ToteSettings:
    """Everything that decides the content of a tote data set."""

    out: Path
    count: int
    seed: int
    subset: str = MIXED
    products: int = 240
    catalogue_seed: int | None = None
    catalog: Path | None = None
    split: str = DEFAULT_SPLIT
    objects: str | None = None
    depth: bool = False
    photo_share: float | None = None
    photo_test_fraction: float | None = None

    def check(self) -> None:
        """Raise DatasetError for settings out of range."""
        writer.check_count("--count", self.count)
        writer.check_seed("--seed", self.seed)
        writer.check_seed(
            "--catalogue-seed", self.seed if self.catalogue_seed is None else self.catalogue_seed
        )
        if self.subset not in SUBSETS:
            raise DatasetError(f"--subset {self.subset!r}: must be one of {', '.join(SUBSETS)}")
        if not 0 <= self.products <= writer.MAX_COUNT or (self.products == 0 and self.catalog is None):
            raise DatasetError(
                f"--products {self.products}: must be 1 to {writer.MAX_COUNT:,} (0 only with --catalog)"
            )
        parse_split(self.split)
        self.object_range()
        self._check_held_back_photos()

    def _check_held_back_photos(self) -> None:
        fraction, splits = self.photo_test_fraction, parse_split(self.split)
        if fraction is None:
            return
        if not 0 < fraction < 1 or self.catalog is None:
            raise DatasetError(
                f"--photo-test-fraction {fraction:g}: must be between 0 and 1, and needs --catalog"
            )
        if "test" in splits and len(splits) > 1:
            raise DatasetError(
                f"--photo-test-fraction {fraction:g}: a catalogue is either for the split test or for the others; "
                "make them in two runs, with --split test and with --split train=0.9,val=0.1"
            )

    def object_range(self) -> ObjectRange | None:
        """Fewest and most objects of a scene, or ``None`` for what the subset has by default."""
        return None if self.objects is None else parse_objects(self.objects)

    def open_catalogue(self) -> UserCatalogue:
        """The catalogue these settings name."""
        seed = self.seed if self.catalogue_seed is None else self.catalogue_seed
        return open_catalogue(
            seed,
            self.products,
            self.catalog,
            self.photo_share,
            test_fraction=self.photo_test_fraction,
            for_test=self.split == "test",
        )

    def record(self, catalogue: Catalogue) -> dict[str, Any]:
        """Settings as stored beside the data."""
        return {
            "command": "totes",
            "count": self.count,
            "seed": self.seed,
            "subset": self.subset,
            "products": self.products,
            "catalogue_seed": catalogue.seed,
            "split": self.split,
            "objects": list(self.object_range() or ()),
            "catalog": [photo.product_id for photo in catalogue.photos],
            **({"depth": True} if self.depth else {}),
            **({} if self.photo_share is None else {"photo_share": self.photo_share}),
            **({} if self.photo_test_fraction is None else {"photo_test_fraction": self.photo_test_fraction}),
        }


def parse_split(text: str) -> dict[str, float]:
    """``"train=0.7,val=0.15,test=0.15"`` or ``"test"`` to shares that sum to 1.

    Raises:
        DatasetError: unknown or repeated name, a share that is no positive number, or a wrong sum.
    """
    remedy = "give train, val or test, or shares such as " + DEFAULT_SPLIT
    if text in SPLITS:
        return {text: 1.0}
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if name not in SPLITS or name in shares or not 0 < share <= 1:
            raise DatasetError(f"--split {text!r}: {item.strip()!r} is not usable; {remedy}")
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise DatasetError(f"--split {text!r}: the shares sum to {sum(shares.values()):g}, not 1; {remedy}")
    return shares


def assign_splits(shares: dict[str, float], count: int, seed: int) -> list[str]:
    """Split name of every scene: exact quotas, shuffled by the seed."""
    edges = np.round(np.cumsum(list(shares.values())) * count).astype(int)
    ordered = np.repeat(list(shares), np.diff(np.concatenate([[0], edges])))
    return [str(name) for name in ordered[np.random.default_rng([seed, 77]).permutation(count)]]


def scene_name(seed: int, subset: str, index: int) -> str:
    """Ten characters, like ARMBench's image names, unique over seeds and subsets for practical purposes."""
    tag = hashlib.blake2b(f"{seed}/{subset}".encode(), digest_size=2).hexdigest().upper()
    return f"{tag}{index:06d}"


def write_scene(settings: ToteSettings, catalogue: Catalogue, index: int) -> None:
    """Worker task: render scene ``index`` and write its images, geometry, manifest and, last, its annotations."""
    folder = settings.out / settings.subset
    name = scene_name(settings.seed, settings.subset, index)
    part = folder / _PARTS / f"{name}.json"
    if part.exists():
        return
    objects = settings.object_range()
    scene = render_scene(catalogue, settings.seed, index, settings.subset, objects, depth=settings.depth)
    writer.write_bytes(folder / "images" / f"{name}.jpg", encode_jpeg(scene.image, scene.jpeg_quality))
    writer.write_bytes(folder / "masks" / f"{name}.png", writer.encode_ids(scene.instance_ids))
    if scene.depth is not None:
        write_geometry(folder, name, scene, scene.depth)
    products = manifest_products(
        catalogue,
        scene.contents,
        np.random.default_rng([settings.seed, index, 11]),
        np.arange(len(catalogue)),
    )
    entries = {product.product_id: product.manifest_entry() for product in products}
    writer.write_json(
        folder / "manifests" / f"{name}.json", {"container_id": f"tote-{name}", "products": entries}
    )
    writer.write_json(
        part, {"objects": scene_annotations(scene), "products": [product.index for product in products]}
    )


def manifest_products(
    catalogue: Catalogue, contents: list[Product], rng: np.random.Generator, pool: NDArray[np.int64]
) -> list[Product]:
    """Distinct products of a container plus up to four of ``pool`` that cannot be seen, in shuffled order."""
    indices = {product.index for product in contents} | {
        int(value) for value in rng.choice(pool, int(rng.integers(0, 5)))
    }
    return [catalogue.product(int(index)) for index in rng.permutation(sorted(indices))]


def scene_annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene without ids: the tote first, then the objects by instance id."""
    tote_box = cv2.boundingRect(scene.tote_mask.astype(np.uint8))
    outline = [round(float(value), 2) for value in scene.tote_polygon.ravel()]
    area = int(np.count_nonzero(scene.tote_mask))
    found = [_annotation(TOTE_ID, [outline], tote_box, area, {"instance_id": 0})]
    for instance in scene.instances:
        x, y, width, height = instance.bbox
        mask = scene.instance_ids[y : y + height, x : x + width] == instance.instance_id
        extra = {
            "instance_id": instance.instance_id,
            "product_id": instance.product.product_id,
            "visible_fraction": round(instance.visible_fraction, 4),
        }
        found.append(_annotation(OBJECT_ID, trace(mask, x, y), instance.bbox, instance.area, extra))
    return found


def _annotation(
    category: int, polygons: list[list[float]], bbox: Sequence[int], area: int, extra: dict[str, Any]
) -> dict[str, Any]:
    return {
        "category_id": category,
        "segmentation": polygons,
        "bbox": list(bbox),
        "area": area,
        "iscrowd": 0,
        **extra,
    }


def write_totes(
    settings: ToteSettings, workers: int, progress: writer.Progress | None = None
) -> dict[str, Any]:
    """Write or continue a tote data set below ``settings.out``.

    Returns:
        Figures of the finished set: scenes, labels per scene, share of scenes by number of labels, share of small
        labels, occlusion, speed.

    Raises:
        DatasetError: settings out of range, or the folder holds something else.
    """
    settings.check()
    writer.check_count("--workers", workers, writer.MAX_WORKERS)
    user_catalogue = settings.open_catalogue()
    catalogue = user_catalogue.catalogue
    folder = settings.out / settings.subset
    writer.claim_folder(folder, settings.record(catalogue))
    user_catalogue.write_sheet(settings.out)
    for name in ("images", "masks", "manifests", _PARTS, *(FOLDERS if settings.depth else ())):
        (folder / name).mkdir(exist_ok=True)
    done = {path.stem for path in (folder / _PARTS).glob("*.json")}
    wanted = (scene_name(settings.seed, settings.subset, index) for index in range(settings.count))
    missing = [index for index, name in enumerate(wanted) if name not in done]
    started = perf_counter()
    writer.run_parallel(partial(write_scene, settings), missing, len(missing), catalogue, workers, progress)
    elapsed = perf_counter() - started
    figures, used = _collect(settings)
    references = [(str(settings.out / "Reference_Images"), index) for index in sorted(used)]
    writer.run_parallel(writer.write_references, references, len(references), catalogue, workers, progress)
    speed = round(len(missing) / elapsed, 2) if missing else 0.0
    return {
        "folder": str(folder),
        "products": len(used),
        **figures,
        **user_catalogue.figures(),
        "scenes_per_second": speed,
    }


class _CocoFile:
    """Streams one COCO file: the annotations first, the images when it is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._images: list[dict[str, Any]] = []
        head = {"info": {"description": "synthesised totes"}, "licenses": [], "categories": CATEGORIES}
        self._file.write(json.dumps(head)[:-1].encode() + b', "annotations": [')
        self._separator = b"\n"

    def add(self, index: int, name: str, objects: list[dict[str, Any]]) -> None:
        """Write the annotations of scene ``index``."""
        image_id = index + 1
        self._images.append({"id": image_id, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT})
        for number, annotation in enumerate(objects):
            entry = {"id": index * _IDS_PER_IMAGE + number + 1, "image_id": image_id, **annotation}
            self._file.write(self._separator + json.dumps(entry, separators=(",", ":")).encode())
            self._separator = b",\n"

    def close(self) -> None:
        """Write the images and the end of the file."""
        self._file.write(b'\n], "images": ' + json.dumps(self._images).encode() + b"}\n")


def _collect(settings: ToteSettings) -> tuple[dict[str, Any], set[int]]:
    """Join the parts into one COCO file per split; returns the figures and the products used."""
    folder = settings.out / settings.subset
    shares = parse_split(settings.split)
    splits = assign_splits(shares, settings.count, settings.seed)
    used: set[int] = set()
    areas: list[int] = []
    visible: list[float] = []
    labels: list[int] = []
    with ExitStack() as stack:
        files = {
            split: _CocoFile(stack.enter_context(writer.atomic(folder / f"{split}.json"))) for split in shares
        }
        for index, split in enumerate(splits):
            name = scene_name(settings.seed, settings.subset, index)
            part = json.loads((folder / _PARTS / f"{name}.json").read_text("utf-8"))
            files[split].add(index, name, part["objects"])
            used.update(part["products"])
            labelled = [entry for entry in part["objects"] if entry["category_id"] == OBJECT_ID]
            labels.append(len(labelled))
            areas += [entry["area"] for entry in labelled]
            visible += [entry["visible_fraction"] for entry in labelled]
        for file in files.values():
            file.close()
    return _figures(np.array(labels), np.array(areas), np.array(visible)), used


def _figures(
    labels: NDArray[np.int64], areas: NDArray[np.int64], visible: NDArray[np.float64]
) -> dict[str, Any]:
    """Figures from the labels of each scene, and the area (px) and visible fraction of each label."""
    figures: dict[str, Any] = {
        "scenes": len(labels),
        "labels": len(areas),
        "labels_per_scene": round(len(areas) / len(labels), 2),
        "scene_share_by_labels": share_by_labels(labels),
    }
    if len(areas):
        figures |= {
            "small_share": round(float((areas < SMALL_AREA).mean()), 3),
            "median_area": float(np.median(areas)),
            "largest_share": round(float(areas.max()) / (WIDTH * HEIGHT), 3),
            "mean_occluded": round(float(1 - visible.mean()), 3),
            "occluded_share": round(float((visible < 0.9).mean()), 3),
        }
    return figures


def share_by_labels(labels: NDArray[np.int64]) -> dict[str, float]:
    """Share of the scenes with 0-4, 5-9, 10-14, 15-25 and 26 or more labels."""
    group = np.searchsorted(list(_LABEL_GROUPS.values()), labels, side="right") - 1
    shares = np.bincount(group, minlength=len(_LABEL_GROUPS)) / len(labels)
    return {name: round(float(share), 3) for name, share in zip(_LABEL_GROUPS, shares, strict=True)}
