"""`mca retrieval`: find images for a text or a document."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mca_perception.retrieval.indexing import IndexCounts

app = typer.Typer(
    name="retrieval", no_args_is_help=True, add_completion=False, help="Find images for a text or a document."
)

Store = Annotated[Path, typer.Option(help="Folder of the store.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="SentencePiece model, for a bundle without its vocabulary. [default: MCA_TOKENIZER]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OtherModel = Annotated[
    Path | None, typer.Option(help="Bundle whose text side is used. [default: the one that made the store]")
]


@app.command(
    epilog="Example: mca retrieval index --images photos --store photos.store --model models/retrieval"
)
def index(
    images: Annotated[
        Path, typer.Option(help="Folder of images, searched to the bottom, or a Parquet file or folder.")
    ],
    store: Store,
    model: Annotated[Path, typer.Option(help="Folder of a bundle with an image and a text side.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="How a new store keeps vectors: float32, float16 or int8. [default: float16]"),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Images that go through the model at once.")
    ] = 32,
    share: Annotated[
        str | None, typer.Option(help="Only the I-th of N shares, I/N, for several machines; see merge.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Encode on a Ray cluster: HOST:PORT, auto, or local for processes of this machine."
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Processes on the cluster. [default: one per processor]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Encode images and add them to a store. Run it again to go on where it was stopped, or to add new images."""
    from mca_perception.cli.reports import progress_bar
    from mca_perception.retrieval.encoder import DualEncoder
    from mca_perception.retrieval.indexing import index_images
    from mca_perception.retrieval.merging import Share, parse_share
    from mca_perception.retrieval.ray_encoding import ray_encoding
    from mca_perception.retrieval.sources import open_source
    from mca_perception.retrieval.store import RetrievalStore

    source = open_source(images)
    if share is not None:
        source = Share(source, *parse_share(share))
    encoder = DualEncoder.from_bundle(model)
    workers = (
        nullcontext()
        if ray is None
        else ray_encoding(model, encoder.image_fingerprint, address=ray, workers=ray_workers)
    )
    with (
        RetrievalStore.write(
            store, image_model=encoder.image_fingerprint, dimension=encoder.dimension, dtype=dtype
        ) as opened,
        workers as encode,
        progress_bar() as bar,
    ):
        ticks = iter(bar(range(len(source) + 1), "images"))
        shown = 0

        def show(done: int) -> None:
            nonlocal shown
            for _ in range(done - shown):
                next(ticks, None)
            shown = max(shown, done)

        counts = index_images(
            source,
            opened,
            encoder,
            encode=encode,
            batch=batch,
            bundle=str(model.resolve()),
            progress=lambda progress: show(progress.done),
        )
        figures = {**_counts(counts), "images": opened.count, "version": opened.version}
    _print(figures, as_json)
    if not figures["images"]:
        raise typer.Exit(1)


@app.command(epilog="Example: mca retrieval merge part1.store part2.store --store photos.store")
def merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders of finished stores.")],
    store: Store,
    as_json: Json = False,
) -> None:
    """Join stores that several machines made of shares of the same images."""
    from contextlib import ExitStack

    from mca_perception.retrieval.merging import merge_stores
    from mca_perception.retrieval.store import RetrievalStore

    with ExitStack() as stack:
        opened = [stack.enter_context(RetrievalStore.open(part)) for part in parts]
        first = opened[0]
        target = stack.enter_context(
            RetrievalStore.write(store, image_model=first.image_model, dimension=first.file.dimension)
        )
        counts = merge_stores(target, opened)
        figures = {**counts, "images": target.count, "version": target.version}
    _print(figures, as_json)


@app.command(epilog="Example: mca retrieval entities --documents articles.jsonl --store photos.store")
def entities(
    documents: Annotated[
        Path,
        typer.Option(
            help="File with a document per line (plain text, or JSON objects with text or AToMiC's fields), or a "
            "Parquet file of AToMiC's texts."
        ),
    ],
    store: Store,
    model: OtherModel = None,
    tokenizer: Tokenizer = None,
    per_entity: Annotated[
        int | None, typer.Option(min=1, help="Images kept per entity. [default: the store's, else 10000]")
    ] = None,
    spacy: Annotated[
        Path | None, typer.Option(help="Folder of a spaCy pipeline that finds entities.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the entities of documents and remember the nearest images of each, so that searches score fewer."""
    from mca_perception.datasets.atomic import read_documents
    from mca_perception.retrieval.documents import Document
    from mca_perception.retrieval.encoder import DualEncoder
    from mca_perception.retrieval.entities import PhraseEntities, SpacyEntities
    from mca_perception.retrieval.entity_index import EntityIndex
    from mca_perception.retrieval.store import RetrievalStore

    with RetrievalStore.open(store) as opened:
        bundle, image_model = model or opened.meta.get("bundle", ""), opened.image_model
        dimension = opened.file.dimension
    encoder = DualEncoder.from_bundle(bundle, tokenizer=tokenizer)
    extractor = SpacyEntities(spacy) if spacy else PhraseEntities()
    found: dict[str, None] = {}
    read = 0
    for _, fields in read_documents(documents):
        found |= dict.fromkeys(extractor.extract(Document(**fields)))
        read += 1
    with RetrievalStore.write(store, image_model=image_model, dimension=dimension) as opened:
        entity_index = EntityIndex(opened)
        added = entity_index.add(found, encoder, images_per_entity=per_entity)
        updated = entity_index.update()
        figures = {
            "documents": read,
            "entities_found": len(found),
            "added": added,
            "updated": updated,
            "entities": len(entity_index),
            "images_per_entity": entity_index.images_per_entity,
            "extractor": extractor.name,
        }
    _print(figures, as_json)


@app.command(epilog='Example: mca retrieval search --store photos.store "a red lighthouse" --out found.jpg')
def search(
    text: Annotated[str, typer.Argument(help="Text or document; - reads it from standard input.")],
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of the store. [default: 120 synthesised pictures of products, to try it]"),
    ] = None,
    model: OtherModel = None,
    tokenizer: Tokenizer = None,
    top_n: Annotated[int, typer.Option("--top-n", min=1, max=1000, help="Images to list.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Also show the images in a picture, .jpg or .png.")] = None,
    image: Annotated[Path | None, typer.Option(help="Search for the text together with this image.")] = None,
    image_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of that image in the query.")
    ] = 0.5,
    whole: Annotated[
        bool, typer.Option("--no-summary", help="Read the text from its beginning instead of a summary.")
    ] = False,
    visual_share: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Share of the sentences to read: those that the store's images can show."
        ),
    ] = 1.0,
    scan: Annotated[
        bool, typer.Option("--no-entities", help="Score all images, whatever the entities.")
    ] = False,
    collapse: Annotated[
        bool, typer.Option("--collapse", help="Leave out near-duplicates of images that are listed before.")
    ] = False,
    back_end: Annotated[
        str,
        typer.Option(
            help="exact, faiss-flat, faiss-float16, faiss-int8, faiss-hnsw, faiss-hnsw-int8, faiss-ivf-int8 or qdrant."
        ),
    ] = "exact",
    location: Annotated[str | None, typer.Option(help="Qdrant: http://HOST:PORT, or a folder.")] = None,
    spacy: Annotated[
        Path | None, typer.Option(help="Folder of a spaCy pipeline that finds entities.")
    ] = None,
    summariser: Annotated[
        Path | None, typer.Option(help="Folder of a model such as BART, in transformers' format.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the images that illustrate a text best."""
    import sys

    from mca_perception.datasets.images import read_rgb
    from mca_perception.retrieval.documents import Document
    from mca_perception.retrieval.embedded import embedded_store
    from mca_perception.retrieval.retriever import NEAR_DUPLICATE, SearchOptions, open_retriever

    retriever = open_retriever(
        store or embedded_store(),
        model=model,
        tokenizer=tokenizer,
        spacy=spacy,
        summariser=summariser,
        back_end=back_end,
        location=location,
    )
    options = SearchOptions(
        top_n=top_n,
        use_entities=not scan,
        use_summary=not whole,
        visual_share=visual_share,
        near_duplicate=NEAR_DUPLICATE if collapse else None,
    )
    with retriever.store:
        answer = retriever.retrieve(
            Document(text=sys.stdin.read() if text == "-" else text),
            options,
            image=None if image is None else read_rgb(image, oriented=True),
            image_weight=image_weight,
        )
    if out is not None:
        from mca_perception.cli.retrieval_sheet import write_sheet

        write_sheet(answer, out)
    if as_json:
        typer.echo(json.dumps(asdict(answer), indent=2, ensure_ascii=False))
        return
    for hit in answer.hits:
        typer.echo(f"{hit.score:7.4f}  {hit.image_id}")
    scanned = "all images" if answer.full_scan else "candidates of the entities"
    typer.echo(
        f"{answer.candidate_count} scored ({scanned}) in {answer.timing_ms['total']:.0f} ms; read as: {answer.summary}",
        err=True,
    )


@app.command(epilog="Example: mca retrieval stats --store photos.store --json")
def stats(store: Store, as_json: Json = False) -> None:
    """Tell what a store holds, and what was left out of it."""
    from collections import Counter

    from mca_perception.retrieval.entity_index import EntityIndex
    from mca_perception.retrieval.store import RetrievalStore

    with RetrievalStore.open(store) as opened:
        entity_index = EntityIndex(opened)
        figures = {
            "images": opened.count,
            "skipped": dict(Counter(opened.skipped().values())),
            "finished": opened.is_finished(),
            "dimension": opened.file.dimension,
            "dtype": opened.file.dtype,
            "bytes": sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
            "image_model": opened.image_model,
            "bundle": opened.meta.get("bundle", ""),
            "entities": len(entity_index),
            "images_per_entity": entity_index.images_per_entity,
            "version": opened.version,
        }
    _print(figures, as_json)


@app.command(epilog="Example: mca retrieval serve --store photos.store")
def serve(
    store: Store,
    model: OtherModel = None,
    namespace: Annotated[str, typer.Option(help="Namespace of the services.")] = "retrieval",
) -> None:
    """Offer search and indexing as ROS 2 services until Ctrl-C; the same as `mca up retrieval`."""
    from mca_perception.ros.bringup import bring_up

    arguments = {"store": str(store.resolve()), "namespace": namespace}
    if model is not None:
        arguments["model"] = str(model.resolve())
    if code := bring_up("retrieval", arguments):
        raise typer.Exit(code)


def _counts(counts: IndexCounts) -> dict[str, Any]:
    return {
        "added": counts.added,
        "already": counts.already,
        "skipped": dict(counts.skipped),
        "seconds": round(counts.seconds, 3),
    }


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures, indent=2, ensure_ascii=False))
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} x {reason}" for reason, count in value.items()) or "none"
        typer.echo(f"{name.replace('_', ' '):20}{value}")
