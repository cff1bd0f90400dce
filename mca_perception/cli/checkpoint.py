"""`mca checkpoint`: inspect and convert weights files of the backbone."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from mca_perception.backbone.checkpoints import CheckpointInfo, SharedSource

app = typer.Typer(
    name="checkpoint",
    no_args_is_help=True,
    add_completion=False,
    help="Inspect and convert weights files of the backbone.",
)

CheckpointPath = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Official BEiT-3 .pth, timm's beit3_*, or weights of this repository."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Dtype(str, Enum):
    """Data types to write."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Shared(str, Enum):
    """Which expert's attention weights become the shared ones."""

    A = "A"
    B = "B"
    mean = "mean"


@app.command(epilog="Example: mca checkpoint inspect beit3_base_itc_patch16_224.pth")
def inspect(file: CheckpointPath, as_json: Json = False) -> None:
    """Tell layout, task, architecture and parameters of a checkpoint."""
    from mca_perception.backbone.checkpoints import detect

    info = detect(file)
    if as_json:
        typer.echo(json.dumps({"file": str(file), "bytes": file.stat().st_size, **asdict(info)}))
    else:
        _print(file, info)


@app.command(
    epilog="Example: mca checkpoint convert beit3_base_itc_patch16_224.pth base.safetensors --modalities vision"
)
def convert(
    file: CheckpointPath,
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    img_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side in pixels of the image that the position table is made for."),
    ] = None,
    modalities: Annotated[
        str | None, typer.Option(help="Experts to keep: vision, text or vision,text.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Data type to write; the file's if not given.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Name of the backbone, if it shall not be told by the sizes.")
    ] = None,
    init_shared_from: Annotated[
        Shared | None,
        typer.Option(
            help="Make the attention shared: from the vision expert (A), the text expert (B), or their mean."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as safetensors, for `backbone.checkpoint` of a recipe."""
    from mca_perception.backbone import checkpoints

    report = checkpoints.convert(
        file,
        out,
        img_size=img_size,
        modalities=None if modalities is None else tuple(modalities.split(",")),
        dtype=dtype and dtype.value,
        backbone=backbone,
        init_shared_from=cast("SharedSource | None", init_shared_from and init_shared_from.value),
        force=force,
    )
    if as_json:
        counts: dict[str, Any] = {
            name: {group: len(keys) for group, keys in groups.items()}
            for name, groups in (("missing", report.missing), ("unexpected", report.unexpected))
        }
        figures = {"out": str(out), "bytes": out.stat().st_size, "tensors": len(report.loaded), **counts}
        typer.echo(json.dumps({**figures, "non_finite": report.non_finite}))
    else:
        typer.echo(f"{out}  {out.stat().st_size / 1e6:.1f} MB  {report.summary('wrote')}")


def _print(file: Path, info: CheckpointInfo) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    for name, value in _facts(file, info).items():
        typer.echo(f"{name:24}{value}")
    groups = Table("group", box=box.SIMPLE)
    groups.add_column("tensors", justify="right")
    groups.add_column("parameters", justify="right")
    for group, count in info.tensors.items():
        groups.add_row(group, f"{count:,}", f"{info.parameters[group]:,}")
    groups.add_section()
    groups.add_row("total", f"{sum(info.tensors.values()):,}", f"{sum(info.parameters.values()):,}")
    Console().print(groups)


def _facts(file: Path, info: CheckpointInfo) -> dict[str, str]:
    """What the file is as a whole, in the order in which it is shown."""
    settings = "".join(f" {key}={value}" for key, value in info.overrides.items())
    heads = f"{info.num_heads} heads" if info.num_heads else "heads not told by the file"
    facts = {
        "file": f"{file} ({file.stat().st_size / 1e6:.1f} MB)",
        "layout": info.layout,
        "heads of": ", ".join(info.tasks) or "no task",
        "backbone": f"{info.backbone or 'none of this repository'}{settings}",
        "sizes": f"width {info.embed_dim}, depth {info.depth}, FFN {info.ffn_dim}, {heads}, {info.attention} attention",
        "modalities": ", ".join(info.modalities),
        "dtype": info.dtype,
        "infinite or NaN": ", ".join(info.non_finite) or "none",
    }
    if "vision" in info.modalities:
        size = f"{info.img_size} px" if info.img_size else "not told: the position table is not a square grid"
        facts["image size"] = f"{size}, patches of {info.patch_size}"
    facts.update({f"header: {key}": value for key, value in sorted(info.metadata.items()) if key != "format"})
    return facts
