"""`mca demo`: see the nodes perceive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    source: Annotated[
        str | None, typer.Option(help="Folder, video, bag or /dev/videoN. Without it, totes are synthesised.")
    ] = None,
    topic: Annotated[str, typer.Option(help="Image topic of a bag that has several.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for overlays, contact sheet and summary.json.")] = Path(
        "demo-out"
    ),
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Images to send. Default: 40 totes or camera images, all of a file."),
    ] = None,
    rate: Annotated[
        float,
        typer.Option(min=0, max=1000, help="Images per second at most; 0: as fast as they are answered."),
    ] = 0.0,
    model: Annotated[str, typer.Option(help="Folder of the model bundle.")] = "models/nano",
    gallery: Annotated[
        Path | None,
        typer.Option(help="Gallery file. Default: built from Reference_Images beside the source."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthesised totes and products.")] = 90_001,
) -> None:
    """Run source, perception and viewer as separate ROS 2 processes and keep pictures of what they perceive.

    \b
    Examples:
      mca demo
      mca demo --source photos/ --out photos-out
    \f
    Raises:
        McaError: model, source or gallery cannot be used.
        typer.Exit: with 1 when a process failed or frames were lost.
    """
    from mca_perception.ros.demo import DemoFailure, DemoSettings, run_demo

    settings = DemoSettings(
        out=out,
        model=model,
        source=source,
        topic=topic,
        frames=frames,
        rate_hz=rate,
        gallery=gallery,
        seed=seed,
    )
    try:
        summary = run_demo(settings, typer.echo)
    except DemoFailure as failure:
        typer.echo(f"demo failed: {failure}", err=True)
        raise typer.Exit(1) from failure
    _report(summary, out)


def _report(summary: dict[str, Any], out: Path) -> None:
    counts, latency, objects = summary["frames"], summary["latency_ms"], summary["objects"]
    typer.echo(
        f"\n{counts['received']} of {counts['sent']} frames came through, {counts['lost']} lost, "
        f"{counts['dropped']} dropped; {summary['fps']:.1f} fps; latency p50 {latency['p50']:.0f} ms, "
        f"p95 {latency['p95']:.0f} ms, p99 {latency['p99']:.0f} ms"
    )
    typer.echo(f"{objects['per_frame_mean']:.1f} objects per frame, {objects['with_product']} with a product")
    truth = summary["products_against_truth"]
    if truth and truth["found_objects"]:
        typer.echo(
            f"synthetic truth: {truth['found_objects']} of {truth['annotated_objects']} objects found, "
            f"{truth['recall@1_of_found']:.0%} of these with the right product"
        )
    typer.echo(f"pictures: {out / 'demo.jpg'}, {out / 'overlays'}\nfigures:  {out / 'summary.json'}")
