"""The demo: source, perception and viewer as processes over DDS, on synthesised or the user's images."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress, track

from mca_perception.datasets.armbench import find_references
from mca_perception.errors import SourceError
from mca_perception.identification.gallery import Gallery
from mca_perception.pipeline import PerceptionPipeline
from mca_perception.pipeline.references import import_references
from mca_perception.ros.contact_sheet import write_contact_sheet
from mca_perception.ros.descriptions import armbench
from mca_perception.ros.engine import bundle_folder
from mca_perception.ros.processes import ProcessGroup, RunningNode
from mca_perception.ros.sources import open_source
from mca_perception.ros.transport import configure_transport

__all__ = ["DemoFailure", "DemoSettings", "run_demo"]

DEFAULT_FRAMES = 40
ENOUGH_FRAMES = 20
SUBSET = "mix-object-tote"
REFERENCES = "Reference_Images"
PRODUCTS = 60
START_LIMIT_S, FRAME_LIMIT_S = 180.0, 30.0


class DemoFailure(Exception):  # noqa: N818 - not an error of the input: the demo ran and did not pass
    """The demo ran and did not reach its goal; the message tells which process failed and how."""


@dataclass(frozen=True)
class DemoSettings:
    """What to show.

    Attributes:
        source: the user's folder, video, bag or camera; ``None`` synthesises totes.
        topic: image topic of a bag that has several.
        frames: images to send; ``None`` takes 40 totes or camera images, or all of a file.
        rate_hz: images per second at most; 0 sends the next as soon as few enough wait for answers.
        gallery: gallery file; ``None`` builds one where there are reference images.
        seed: of the synthesised totes and their products.
    """

    out: Path
    model: str = "models/nano"
    source: str | None = None
    topic: str = ""
    frames: int | None = None
    rate_hz: float = 0.0
    gallery: Path | None = None
    seed: int = 90_001


def run_demo(settings: DemoSettings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo.

    Args:
        settings: what to show.
        say: prints a line for the user.

    Returns:
        The viewer's summary.

    Raises:
        McaError: model, source or gallery cannot be used.
        DemoFailure: a process failed, frames were lost, or too few came through.
    """
    # What the processes would stumble over is opened here first, where it can be said in one line.
    model = bundle_folder(settings.model)
    pipeline = PerceptionPipeline.from_bundle(model)
    bundle = pipeline.bundle
    parameters = bundle.manifest.backbone.parameters / 1e6
    say(f"model: {bundle.manifest.name} ({model}), backbone of {parameters:.1f} M parameters")
    if settings.source is not None:
        open_source(settings.source, topic=settings.topic).close()
    if settings.gallery is not None:
        Gallery.open(settings.gallery, model=bundle.embedding_fingerprint, create=False).close()
    out = settings.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    source = settings.source or str(_synthesise(settings, out, say))
    gallery = _gallery(settings, pipeline, source, out, say)
    frames = settings.frames
    if frames is None:
        frames = DEFAULT_FRAMES if settings.source is None or source.startswith("/dev/") else 0
    _clear(out)
    nodes = armbench(
        {
            "model": str(model.resolve()),
            "gallery": str(gallery) if gallery else "",
            "source": source if source.startswith("/dev/") else str(Path(source).resolve()),
            "topic": settings.topic,
            "rate_hz": str(settings.rate_hz),
            "max_frames": str(frames),
            "frame_policy": "every_frame",
            "viewer": "true",
            "out": str(out),
        }
    )
    say(configure_transport())
    environment = private_environment(out)
    say(f"starting {', '.join(node.name for node in nodes)} (ROS_DOMAIN_ID {environment['ROS_DOMAIN_ID']})")
    logs = out / "log"
    with ProcessGroup(on_line=_LogFiles(logs), environment=environment) as group:
        group.start(nodes, terminal=("viewer",))
        ended = group.wait(START_LIMIT_S + FRAME_LIMIT_S * frames if frames else None)
        if losses := group.describe_losses():
            say(f"warning: {losses}")
        check_end(ended, group, logs)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    _check_frames(summary, 1 if settings.source else min(frames, ENOUGH_FRAMES))
    write_contact_sheet(sorted((out / "overlays").glob("*.jpg")), out / "demo.jpg")
    return summary


def private_environment(out: Path) -> dict[str, str]:
    """Environment of the nodes: a domain of their own on this machine, unless the user chose one."""
    environment = dict(os.environ)
    if not environment.get("ROS_DOMAIN_ID"):
        environment["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(1, 101))
        environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment.setdefault("ROS_LOG_DIR", str(out / "log" / "ros"))
    return environment


def _synthesise(settings: DemoSettings, out: Path, say: Callable[[str], None]) -> Path:
    from mca_perception.datasets.synth.tote_set import ToteSettings, write_totes
    from mca_perception.datasets.synth.writer import FORMAT

    count = settings.frames or DEFAULT_FRAMES
    totes = ToteSettings(
        out / f"totes-{settings.seed}-{count}-format{FORMAT}",  # an older one cannot be continued
        count,
        settings.seed,
        products=PRODUCTS,
        split="test",
    )
    say(f"synthesising {count} totes with {PRODUCTS} products (seed {settings.seed}) ...")
    started = time.monotonic()
    with Progress(transient=True) as bar:
        task = bar.add_task("totes")
        workers = max(1, min(os.cpu_count() or 1, 8))
        write_totes(totes, workers, lambda done, total: bar.update(task, completed=done, total=total))
    say(f"  done in {time.monotonic() - started:.0f} s: {totes.out}")
    return totes.out / SUBSET


def _gallery(
    settings: DemoSettings, pipeline: PerceptionPipeline, source: str, out: Path, say: Callable[[str], None]
) -> Path | None:
    """The gallery to identify with, if there can be one."""
    if settings.gallery is not None:
        return settings.gallery.resolve()
    folder = find_reference_folder(Path(source))
    if folder is None:
        say("no gallery and no Reference_Images beside the source: objects come without products (--gallery)")
        return None
    say(f"building the gallery from {folder} ...")
    started = time.monotonic()
    target = out / "products.gallery"
    for leftover in out.glob(f"{target.name}*"):
        leftover.unlink()
    with Gallery.open(target, model=pipeline.bundle.embedding_fingerprint) as gallery:
        counts = import_references(
            pipeline,
            gallery,
            find_references(folder),
            progress=lambda items, text: track(items, text, transient=True),
        )
    say(f"  {counts.products} products, {counts.images} images in {time.monotonic() - started:.0f} s")
    return target


def find_reference_folder(source: Path) -> Path | None:
    """``Reference_Images`` of the data set that a folder of images lies in."""
    folders = [source, *list(source.resolve().parents)[:3]] if source.is_dir() else []
    return next((folder / REFERENCES for folder in folders if (folder / REFERENCES).is_dir()), None)


def _clear(out: Path) -> None:
    """Remove the results of an earlier run, so that what is there afterwards is from this one."""
    for old in (
        *(out / "overlays").glob("*.jpg"),
        out / "summary.json",
        out / "demo.jpg",
        *(out / "log").glob("*.log"),
    ):
        old.unlink(missing_ok=True)


def check_end(ended: RunningNode | None, group: ProcessGroup, logs: Path) -> None:
    """Raise DemoFailure unless the process that ended did so with success; say what the others last wrote."""
    if ended is None:
        tails = "\n".join(
            f"{node.name}: {node.tail[-1] if node.tail else '(no output)'}" for node in group.nodes
        )
        raise DemoFailure(
            f"the demo did not finish in time; the last line of each process:\n{tails}\nlogs: {logs}"
        )
    if ended.process.returncode != 0:
        others = [node for node in group.nodes if node is not ended and node.name == "perception"]
        more = "".join(
            f"\nlast lines of {node.name!r}:\n" + "\n".join(f"  {line}" for line in node.tail)
            for node in others
        )
        raise DemoFailure(f"{ended.describe_failure()}{more}\nlogs: {logs}")


def _check_frames(summary: Mapping[str, Any], enough: int) -> None:
    frames = summary["frames"]
    if not frames["sent"]:
        raise SourceError("the source sent no image; give one with readable images")
    if frames["lost"] or frames["dropped"]:
        raise DemoFailure(
            f"of {frames['sent']} frames {frames['lost']} were lost and {frames['dropped']} dropped "
            f"({frames['dropped_by_cause']})"
        )
    if frames["received"] < enough:
        raise DemoFailure(f"only {frames['received']} frames came through, at least {enough} are expected")


class _LogFiles:
    """Appends every line of a process to ``<folder>/<name>.log``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def __call__(self, name: str, line: str) -> None:
        with (self._folder / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
