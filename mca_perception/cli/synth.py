"""`mca synth`: synthesise totes, picks and defects in ARMBench's formats."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mca_perception.datasets.synth.writer import Progress

app = typer.Typer(no_args_is_help=True, help="Synthesise totes, picks and defects in ARMBench's formats.")

Out = Annotated[Path, typer.Option(help="Folder to write to: new, empty, or left by the same command.")]
Count = Annotated[int, typer.Option(help="How many to make, 1 to 1,000,000.")]
Seed = Annotated[int, typer.Option(help="Equal seeds and settings give equal bytes.")]
Subset = Annotated[
    str, typer.Option(help="mix-object-tote, zoomed-out-tote-transfer-set or same-object-transfer-set.")
]
Catalog = Annotated[
    Path | None,
    typer.Option(help="Folder of product photos on plain backgrounds, to use as further products."),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes; the result does not depend on it.", show_default="one per core")
]
CatalogueSeed = Annotated[
    int | None,
    typer.Option(help="Seed of the products; different ones share no product.", show_default="--seed"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@app.command()
def totes(
    out: Out,
    count: Count,
    seed: Seed = 0,
    subset: Subset = "mix-object-tote",
    catalog: Catalog = None,
    workers: Workers = None,
    split: Annotated[
        str, typer.Option(help="Shares that sum to 1, or the one split that gets everything.")
    ] = "train=0.7,val=0.15,test=0.15",
    products: Annotated[int, typer.Option(help="Procedural products; 0 only with --catalog.")] = 240,
    catalogue_seed: CatalogueSeed = None,
    objects: Annotated[
        str | None,
        typer.Option(
            help="Objects dropped into each tote, MIN-MAX within 1 to 60.",
            metavar="MIN-MAX",
            show_default="long-tailed: 2 to 40 in the mixed subset, 2 to 24 zoomed out, 2 to 16 of one product",
        ),
    ] = None,
    depth: Annotated[
        bool,
        typer.Option("--depth", help="Also write depth images, camera_info and poses of camera and objects."),
    ] = False,
    photo_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the objects that are photos of --catalog, 0 to 1.",
            show_default="each product equally likely",
        ),
    ] = None,
    photo_test_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the products of --catalog that only --split test shows.",
            show_default="all in every split",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write tote scenes with exact instance masks, COCO files, manifests and reference images.

    \b
    Example:
      mca synth totes --out totes --count 1000 --seed 1
      mca synth totes --out totes --count 200 --seed 1 --split test --subset same-object-transfer-set
      mca synth totes --out crowds --count 200 --seed 1 --objects 30-40
    \f
    Raises:
        DatasetError: settings out of range, or a folder that holds something else.
    """
    from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes

    settings = ToteSettings(
        out,
        count,
        seed,
        subset,
        products,
        catalogue_seed,
        catalog,
        split,
        objects,
        depth,
        photo_share,
        photo_test_fraction,
    )
    with _progress_bar("totes") as progress:
        figures = write_totes(settings, _workers(workers), progress)
    _report(figures, as_json)


@app.command()
def picks(
    out: Out,
    count: Count,
    seed: Seed = 0,
    catalog: Catalog = None,
    workers: Workers = None,
    products: Annotated[
        int | None, typer.Option(help="Procedural products.", show_default="count / 3, at least 200")
    ] = None,
    catalogue_seed: CatalogueSeed = None,
    test_fraction: Annotated[
        float, typer.Option(help="Share of the picks, and of the products, in the test part.")
    ] = 0.3,
    as_json: Json = False,
) -> None:
    """Write picks with pre- and post-pick views, container manifests, reference images and a split.

    \b
    Example:
      mca synth picks --out picks --count 1000 --seed 1
    \f
    Raises:
        DatasetError: settings out of range, or a folder that holds something else.
    """
    from mca_perception.datasets.synth.pick_set import PickSettings, write_picks

    settings = PickSettings(out, count, seed, products, catalogue_seed, catalog, test_fraction)
    with _progress_bar("containers") as progress:
        figures = write_picks(settings, _workers(workers), progress)
    _report(figures, as_json)


@app.command()
def captions(
    out: Out,
    count: Count,
    seed: Seed = 0,
    workers: Workers = None,
    validation_share: Annotated[
        float, typer.Option("--val", help="Share of the products in the split val.")
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Write pictures of products with captions of what is seen on them (pairs.jsonl), and a vocabulary of them.

    \b
    Example:
      mca synth captions --out captions --count 4000 --seed 1
    \f
    Raises:
        DatasetError: settings out of range, or a folder that holds something else.
    """
    from mca_perception.datasets.synth.caption_set import CaptionSettings, write_captions

    settings = CaptionSettings(out, count, seed, validation_share)
    with _progress_bar("products") as progress:
        figures = write_captions(settings, _workers(workers), progress)
    _report(figures, as_json)


@app.command()
def defects(
    out: Out,
    count: Count,
    seed: Seed = 0,
    videos: Annotated[bool, typer.Option("--videos", help="Also write a short clip of every pick.")] = False,
    workers: Workers = None,
    products: Annotated[
        int | None, typer.Option(help="Procedural products.", show_default="count / 3, at least 200")
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Share of the sessions, and of the products, in the test part.")
    ] = 0.3,
    as_json: Json = False,
) -> None:
    """Write picks of one object, of several, and of opened packages, seen from several sides.

    \b
    Example:
      mca synth defects --out defects --count 1000 --seed 1 --videos
    \f
    Raises:
        DatasetError: settings out of range, or a folder that holds something else.
    """
    from mca_perception.datasets.synth.defect_set import DefectSettings, write_defects

    settings = DefectSettings(out, count, seed, products, test_fraction, videos)
    with _progress_bar("sessions") as progress:
        figures = write_defects(settings, _workers(workers), progress)
    _report(figures, as_json)


def _workers(wanted: int | None) -> int:
    return (os.cpu_count() or 1) if wanted is None else wanted


@contextmanager
def _progress_bar(unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        typer.echo(f"{name:18} {value}")
