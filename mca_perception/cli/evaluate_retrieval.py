"""`mca eval` of retrieval: documents and captions against images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mca_perception.cli.evaluate_options import Limit, Out

__all__ = ["app"]

app = typer.Typer()

VisualShare = Annotated[
    float,
    typer.Option(min=0.01, max=1, help="Share of the sentences to read: those that the images can show."),
]


@app.command(
    "grocery-retrieval",
    epilog="Example: mca eval grocery-retrieval --data grocery --split val --model models/retrieval --out out",
)
def grocery_retrieval(
    data: Annotated[Path, typer.Option(help="Folder of the Grocery Store data set.")],
    model: Annotated[Path, typer.Option(help="Folder of a bundle with an image and a text side.")],
    out: Out,
    split: Annotated[str, typer.Option(help="NAME of the list of photos NAME.txt.")] = "val",
    summary: Annotated[bool, typer.Option(help="Search with summaries of the descriptions.")] = True,
    visual_share: VisualShare = 1.0,
    per_entity: Annotated[
        int,
        typer.Option(min=0, help="Images per entity of an index over train's descriptions; 0: score all."),
    ] = 0,
    back_end: Annotated[
        str, typer.Option(help="How all images are searched, as in mca retrieval search.")
    ] = "exact",
) -> None:
    """Score how well product descriptions find the natural photos of the products."""
    from mca_perception.cli.retrieval_reports import evaluate_grocery

    evaluate_grocery(
        data,
        split,
        model,
        out,
        summary=summary,
        visual_share=visual_share,
        per_entity=per_entity,
        back_end=back_end,
    )


@app.command(
    "atomic", epilog="Example: mca eval atomic --data atomic --model runs/cfir/bundle --out results/atomic"
)
def atomic(
    data: Annotated[Path, typer.Option(help="Folder with texts/, images/ and qrels/ of AToMiC.")],
    model: Annotated[Path, typer.Option(help="Folder of a bundle with an image and a text side.")],
    out: Out,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    pool: Annotated[
        str,
        typer.Option(help="Images to search: small (the split's own), base (of any qrels) or large (all)."),
    ] = "base",
    summary: Annotated[bool, typer.Option(help="Search with summaries of the texts.")] = True,
    visual_share: VisualShare = 1.0,
    per_entity: Annotated[
        int, typer.Option(min=0, help="Images per entity of an index over train's texts; 0: score all.")
    ] = 0,
    back_end: Annotated[
        str, typer.Option(help="How all images are searched, as in mca retrieval search.")
    ] = "exact",
    entity_model: Annotated[
        Path | None,
        typer.Option(help="Bundle of the pre-trained text side that encodes entities. [default: --model]"),
    ] = None,
    limit: Limit = None,
) -> None:
    """Score text-to-image retrieval with ir_measures; also writes run.txt. Goes on where it was stopped."""
    from mca_perception.cli.retrieval_reports import evaluate_atomic

    evaluate_atomic(
        data,
        split,
        model,
        out,
        pool=pool,
        summary=summary,
        visual_share=visual_share,
        per_entity=per_entity,
        back_end=back_end,
        entity_model=entity_model,
        limit=limit,
    )


@app.command(
    "image-text",
    epilog="Example: mca eval image-text --data dataset_coco.json --images coco --model runs/b --out results/coco",
)
def image_text(
    data: Annotated[Path, typer.Option(help="Karpathy's split file, such as dataset_coco.json.")],
    model: Annotated[Path, typer.Option(help="Folder of a bundle with an image and a text side.")],
    out: Out,
    images: Annotated[
        Path | None, typer.Option(help="Folder that the file names are relative to. [default: the file's]")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Limit = None,
) -> None:
    """Score captions against images in both directions: R@1, R@5, R@10."""
    from mca_perception.cli.retrieval_reports import evaluate_image_text

    evaluate_image_text(data, images, split, model, out, limit=limit)
