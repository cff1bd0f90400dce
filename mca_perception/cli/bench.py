"""`mca bench`: measure latency and throughput on this machine."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class What(str, Enum):
    """What can be measured against peers."""

    BACKBONE = "backbone"
    SEGMENTATION = "segmentation"
    PIPELINE = "pipeline"


def command(
    what: Annotated[
        What | None, typer.Argument(help="Measure this beside its peers; without it, run the scripts.")
    ] = None,
    model: Annotated[Path, typer.Option(help="Folder of the model bundle.")] = Path("models/nano"),
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON files.  [benchmarks/results]")] = None,
    only: Annotated[str | None, typer.Option(help="Run this benchmark alone, such as pipeline.")] = None,
    against: Annotated[
        str, typer.Option(help="Peers: torch-eager, torch-compile, timm, torchscale, torchvision-maskrcnn.")
    ] = "",
    session: Annotated[
        str,
        typer.Option(
            help="Back ends of ours, separated by commas. With backbone, torch is our compiled module."
        ),
    ] = "onnxruntime-cpu,openvino",
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Turns of every candidate.")] = 20,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every candidate.  [all cores]")
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Pipeline, segmentation: images at the same time in a second pass, which share the threads out.",
        ),
    ] = 2,
) -> None:
    """Measure on this machine.

    With backbone, segmentation or pipeline: our graphs and the peers take turns in one process; medians, percentiles,
    throughput (images one by one and several at once) and the share of the machine's own peak. Without: every script
    in benchmarks/, one JSON file each.

    \b
    Examples:
      mca bench --only pipeline --out results
      mca bench backbone --against torch-eager,timm,torchscale --json backbone.json
    """
    if what is not None:
        _measure(what, model, against, session, json, runs, threads, at_once)
    else:
        _run_scripts(model, out, only)


def _measure(
    what: What,
    model: Path,
    against: str,
    session: str,
    json: Path | None,
    runs: int,
    threads: int | None,
    at_once: int,
) -> None:
    import os

    from mca_perception.cli import bench_backbone, bench_scenes, reports
    from mca_perception.cli.bench_cases import SEED, BenchSettings
    from mca_perception.cli.bench_peaks import MachinePeaks
    from mca_perception.cli.bench_power import PowerMeter
    from mca_perception.deploy.bundle import ModelBundle
    from mca_perception.resources import resource_path

    count = threads or os.cpu_count() or 1
    sessions, peers = (
        [part.strip() for part in text.split(",") if part.strip()] for text in (session, against)
    )
    bundle = model if model.is_dir() else resource_path(str(model))
    machine = MachinePeaks(count)
    with PowerMeter() as meter:
        settings = BenchSettings(runs, count, at_once, machine.sample, meter)
        if what == What.BACKBONE:
            outcome = bench_backbone.bench_backbone(sessions, peers, settings)
        else:
            measure = (
                bench_scenes.bench_pipeline if what == What.PIPELINE else bench_scenes.bench_segmentation
            )
            outcome = measure(bundle, sessions, peers, settings)
    peaks = machine.figures()
    for name, reason in outcome.left_out.items():
        typer.echo(f"{name} is left out: {reason}")
    for case, candidates in outcome.cases.items():
        most = max((values["images_per_second"] for values in candidates.values()), default=1.0)
        for name, values in candidates.items():
            _compare(values, most, peaks["gemm_gflop_per_s"])
            _print_row(case, name, values)
    product, best = peaks["gemm_product"], peaks["gemm_gflop_per_s"]
    median = peaks["gemm_products"][product]["median"]
    typer.echo(f"matrix products: {best} GFLOP/s at best ({product}), {median} in the median")
    if json is None:
        return
    reports.new_folder(json.parent)
    facts = reports.environment(("openvino", "torch", "timm", "torchscale", "torchvision"))
    reports.write_json(
        json,
        {
            "benchmark": what.value,
            "model": "beit3_base_patch16, random weights"
            if what == What.BACKBONE
            else reports.model_facts(ModelBundle.open(bundle)),
            "threads": count,
            "runs": runs,
            "seed": SEED,
            "input_sha256": outcome.input_sha256,
            "peaks": peaks,
            "power_from": meter.tool,
            **outcome.facts,
            "cases": outcome.cases,
            "left_out": outcome.left_out,
            **facts,
        },
    )
    typer.echo(str(json))


def _compare(values: dict[str, float], most: float, gemm_gflop_per_s: float) -> None:
    """Add a candidate's shares: of the quickest one's images per second, and of the machine's matrix products."""
    values["ratio_to_fastest"] = round(most / values["images_per_second"], 3)
    if "gflop_per_s" in values:
        values["share_of_gemm_peak"] = round(values["gflop_per_s"] / gemm_gflop_per_s, 3)
        values["fastest_share_of_gemm_peak"] = round(values["fastest_gflop_per_s"] / gemm_gflop_per_s, 3)


def _print_row(case: str, name: str, values: dict[str, float]) -> None:
    share = ""
    if "share_of_gemm_peak" in values:
        share = f"  {values['share_of_gemm_peak']:.0%} of peak (at best {values['fastest_share_of_gemm_peak']:.0%})"
    power = f"  {values['watts']:.1f} W" if "watts" in values else ""
    typer.echo(
        f"{case:24} {name:22} {values['p50_ms']:9.1f} ms  p95 {values['p95_ms']:.1f}  best {values['fastest_ms']:.1f}  "
        f"{values['images_per_second']:7.2f} img/s  {values['ratio_to_fastest']:.2f} x{share}{power}"
    )


def _run_scripts(model: Path, out: Path | None, only: str | None) -> None:
    import subprocess
    import sys

    from mca_perception.cli.reports import new_folder
    from mca_perception.errors import McaError
    from mca_perception.resources import resource_path

    folder = resource_path("benchmarks")
    scripts = sorted(folder.glob("*.py")) if only is None else [folder / f"{only}.py"]
    if not scripts or not scripts[0].is_file():
        known = ", ".join(script.stem for script in sorted(folder.glob("*.py")))
        raise McaError(f"there is no benchmark {only!r} in {folder} (there are: {known}); name one of these")
    bundle = model if model.is_dir() else resource_path(str(model))
    results = new_folder(out or folder / "results")
    failed = []
    for script in scripts:
        arguments = [sys.executable, str(script), "--model", str(bundle), "--out", str(results)]
        if subprocess.run(arguments, check=False).returncode:
            failed.append(script.stem)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)
