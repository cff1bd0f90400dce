"""`mca gallery`: manage the product gallery."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="gallery", no_args_is_help=True, add_completion=False, help="Manage the product gallery."
)

GalleryPath = Annotated[Path, typer.Option("--path", help="The gallery file.")]
Model = Annotated[
    Path, typer.Option(help="Folder of the model bundle; a gallery belongs to the model that filled it.")
]
KeepCopies = Annotated[
    bool,
    typer.Option("--keep-copies", help="Keep small copies of the images in the gallery, not only paths."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@app.command(
    "import",
    epilog="Example: mca gallery import picks/Reference_Images --path shop.gallery --model models/nano",
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with <Product-ID>/*.jpg or <Product-ID>.jpg, or a .csv file with columns product_id, image."
        ),
    ],
    path: GalleryPath,
    model: Model,
    keep_copies: KeepCopies = False,
    as_json: Json = False,
) -> None:
    """Embed reference images of products and add them; products that are there already are replaced."""
    from mca_perception.cli.reports import progress_bar
    from mca_perception.identification.gallery import Gallery
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.references import ImportCounts, import_references

    skipped = ImportCounts().skipped
    references = _find(source, skipped)
    pipeline = PerceptionPipeline.from_bundle(model)
    with (
        Gallery.open(path, model=pipeline.bundle.embedding_fingerprint) as gallery,
        progress_bar() as progress,
    ):
        counts = import_references(pipeline, gallery, references, keep_copies=keep_copies, progress=progress)
        total = len(gallery)
    counts.skipped.update(skipped)
    figures = {
        "imported_products": counts.products,
        "imported_images": counts.images,
        "skipped": dict(counts.skipped),
        "products": total,
    }
    _report(figures, as_json)
    if counts.products == 0:
        raise typer.Exit(1)


@app.command(
    epilog="Example: mca gallery add B00ABC123 front.jpg back.jpg --path shop.gallery --model models/nano"
)
def add(
    product_id: Annotated[str, typer.Argument(help="Id of the product.")],
    images: Annotated[list[Path], typer.Argument(help="Its reference images.")],
    path: GalleryPath,
    model: Model,
    keep_copies: KeepCopies = False,
) -> None:
    """Add one product, or replace its reference images."""
    from mca_perception.datasets.images import read_rgb
    from mca_perception.identification.gallery import Gallery
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline.references import small_copy

    pipeline = PerceptionPipeline.from_bundle(model)
    pictures = [read_rgb(image, oriented=True) for image in images]
    kept = [small_copy(p) for p in pictures] if keep_copies else [str(image.resolve()) for image in images]
    with Gallery.open(path, model=pipeline.bundle.embedding_fingerprint) as gallery:
        gallery.add(product_id, pipeline.embed_references(pictures), kept)
        typer.echo(f"added {product_id} with {len(pictures)} images; {len(gallery)} products")


@app.command(epilog="Example: mca gallery remove B00ABC123 --path shop.gallery")
def remove(product_id: Annotated[str, typer.Argument(help="Id of the product.")], path: GalleryPath) -> None:
    """Remove one product."""
    from mca_perception.identification.gallery import Gallery

    with Gallery.open(path, create=False) as gallery:
        gallery.remove(product_id)
        typer.echo(f"removed {product_id}; {len(gallery)} products")


@app.command(epilog="Example: mca gallery search photo.jpg --path shop.gallery --model models/nano --k 3")
def search(
    image: Annotated[Path, typer.Argument(help="Image of one object; a plain background is removed.")],
    path: GalleryPath,
    model: Model,
    k: Annotated[int, typer.Option(min=1, help="Products to list.")] = 5,
    manifest: Annotated[
        list[str] | None, typer.Option("--product", help="Only among these products; may be repeated.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every reference, also in a large gallery.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the products most similar to an image."""
    from mca_perception.datasets.images import read_rgb
    from mca_perception.identification.gallery import Gallery
    from mca_perception.pipeline import PerceptionPipeline

    pipeline = PerceptionPipeline.from_bundle(model)
    picture = read_rgb(image, oriented=True)
    with Gallery.open(path, model=pipeline.bundle.embedding_fingerprint, create=False) as gallery:
        unknown = gallery.unknown(manifest) if manifest else []
        (ranking,) = gallery.search(pipeline.embed_references([picture]), k, manifest or None, exact=exact)
    if as_json:
        products = [{"product_id": product, "score": score} for product, score in ranking]
        typer.echo(json.dumps({"products": products, "unknown": unknown}))
        return
    for place, (product, score) in enumerate(ranking, start=1):
        typer.echo(f"{place:3}  {score:.4f}  {product}")
    if unknown:
        typer.echo(f"not in the gallery: {', '.join(unknown)}", err=True)
    if not ranking:
        typer.echo("no product to rank", err=True)


@app.command(epilog="Example: mca gallery stats --path shop.gallery --list")
def stats(
    path: GalleryPath,
    products: Annotated[bool, typer.Option("--list", help="List the products as well.")] = False,
    as_json: Json = False,
) -> None:
    """Tell what a gallery holds."""
    from mca_perception.identification.gallery import Gallery

    with Gallery.open(path, create=False) as gallery:
        counts = gallery.reference_counts()
        figures: dict[str, Any] = {
            "products": len(counts),
            "references": sum(counts.values()),
            "references_per_product": [min(counts.values(), default=0), max(counts.values(), default=0)],
            "dimension": gallery.dimension,
            "model": gallery.model,
            "file_bytes": path.stat().st_size,
        }
    if products:
        figures["references_of"] = dict(sorted(counts.items()))
    _report(figures, as_json)


@app.command(epilog="Example: mca gallery reembed --path shop.gallery --model models/base")
def reembed(
    path: GalleryPath,
    model: Model,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder or .csv file as for `import`, where the images have moved or were never known."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Remove products without a readable image.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Embed all products again, for another model; repeat the command after an interruption."""
    from mca_perception.cli.reports import progress_bar
    from mca_perception.identification.gallery import Gallery
    from mca_perception.pipeline import PerceptionPipeline
    from mca_perception.pipeline import references as pipeline_references

    skipped = pipeline_references.ImportCounts().skipped
    found_in = {} if images is None else _find(images, skipped)
    pipeline = PerceptionPipeline.from_bundle(model)
    with Gallery.open(path, create=False) as gallery, progress_bar() as progress:
        counts = pipeline_references.reembed(
            pipeline, gallery, found_in=found_in, allow_missing=allow_missing, progress=progress
        )
    with Gallery.open(path, create=False) as gallery:
        figures = {
            "embedded_products": counts.products,
            "embedded_images": counts.images,
            "skipped": dict(counts.skipped + skipped),
            "products": len(gallery),
            "model": gallery.model,
        }
    _report(figures, as_json)


@app.command(epilog="Example: mca gallery export --path shop.gallery --out shop")
def export(path: GalleryPath, out: Annotated[Path, typer.Option(help="Folder for the two files.")]) -> None:
    """Write embeddings.npy and references.csv."""
    from mca_perception.cli.reports import new_folder
    from mca_perception.identification.gallery import Gallery
    from mca_perception.identification.gallery_export import export_gallery

    with Gallery.open(path, create=False) as gallery:
        count = export_gallery(gallery, new_folder(out))
    typer.echo(f"wrote {count} references to {out}")


@app.command(epilog="Example: mca gallery sheet --path shop.gallery --out shop.jpg")
def sheet(
    path: GalleryPath,
    out: Annotated[Path, typer.Option(help="Picture to write, .jpg or .png.")],
    product: Annotated[
        list[str] | None,
        typer.Option("--product", help="Show this product; may be repeated. Default: the first."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=500, help="Products to show.")] = 48,
) -> None:
    """Write a picture of products: the first reference image of each, with its id and number of images."""
    from mca_perception.cli.gallery_sheet import write_sheet
    from mca_perception.identification.gallery import Gallery

    with Gallery.open(path, create=False) as gallery:
        shown = write_sheet(gallery, out, (product or gallery.products())[:count])
    typer.echo(f"wrote {out} with {shown.products} products, {shown.without_image} of them without image")


def _find(source: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """Image files by product, from a folder or a list."""
    from mca_perception.datasets.armbench import find_references
    from mca_perception.datasets.catalogue import read_catalogue
    from mca_perception.errors import DatasetError

    if source.suffix.lower() == ".csv":
        return read_catalogue(source, skipped)
    references = find_references(source, skipped)
    if not references:
        raise DatasetError(f"{source} has no reference images; give one with <Product-ID>/*.jpg")
    return references


def _report(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            typer.echo(f"{name:24}" + ("" if value else "none"))
            for key, count in value.items():
                typer.echo(f"  {count:>8}  {key}")
        else:
            typer.echo(f"{name:24}{value}")
