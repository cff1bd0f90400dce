"""The models behind the node: bundle, sessions, gallery and pipeline, opened together and exchanged together."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle
from mca_perception.deploy.session import SessionOptions, Sessions, open_sessions
from mca_perception.deploy.sessions.batching import batching
from mca_perception.deploy.sessions.cuda_memory import gpu_memory
from mca_perception.deploy.sessions.selection import AUTOMATIC
from mca_perception.deploy.sessions.sharing import threads_of_each
from mca_perception.errors import BundleError, GalleryError, McaError, error_text
from mca_perception.geometry import PADDING_VALUE
from mca_perception.identification.gallery import Gallery
from mca_perception.objects import Objects
from mca_perception.pipeline import PerceptionPipeline, Tiling
from mca_perception.pipeline.inspection import GRAPHS, DefectInspector
from mca_perception.resources import resource_path
from mca_perception.ros.defect_messages import DefectRule, rule_for
from mca_perception.ros.frames import NO_CONTAINER, Container
from mca_perception.segmentation.postprocess import CONTAINERS

__all__ = ["Engine", "EngineSlot", "Settings", "bundle_folder"]

MAX_MANIFEST_PRODUCTS = 100_000
MAX_ID_LENGTH = 256


@dataclass(frozen=True)
class Settings:
    """What may change from frame to frame.

    Attributes:
        score_threshold: objects below it are left out; negative means as calibrated with the model.
        classes: labels of the objects that are wanted; empty for all.
        top_k: products per object.
        identify: look objects up in the gallery.
        reject_unknown: leave objects without products when none is similar enough.
        inspect: judge whether objects are defective, where the model can.
        tiling: further looks at crowded images.
    """

    score_threshold: float = -1.0
    classes: tuple[str, ...] = ()
    top_k: int = 5
    identify: bool = True
    reject_unknown: bool = True
    inspect: bool = False
    tiling: Tiling = field(default_factory=Tiling)


class Engine:
    """Everything that is loaded with a model and released with it.

    Attributes:
        pipeline: from image to objects.
        inspector: judges picks; ``None`` for a bundle without defect head.
        gallery: products; ``None`` without.
        model: ``name@fingerprint``.
        provider: what runs the graphs, and ONNX Runtime's first execution provider.
        choice: the same with the reasons against the others.
        labels: class names.
        blank: image of the network's input size, grey: for trying the model out.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        gallery: str | Path = "",
        session: str = AUTOMATIC,
        providers: Sequence[str] = (),
        batch: int = 1,
        parallel: int = 1,
        threads: int = 0,
        on_state: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open a bundle, and a gallery when one is named.

        Args:
            model: folder of the bundle.
            gallery: an existing gallery file; empty for none.
            session: what runs the graphs, by the names that :func:`.open_sessions` takes.
            providers: ONNX Runtime execution providers, best first; they take the place of ``session``.
            batch: rows (images or crops) of several engines of this process that go through a graph at once.
            parallel: threads that call the engine at the same time. With batches, what they ask for runs in turns.
            threads: of the graphs for each of them; 0 shares out the cores.
            on_state: told what is being loaded or built, which can take minutes; empty once it is done.

        Raises:
            BundleError: the bundle is missing, altered, of another version, or does not segment; or what should run it
                cannot be used here.
            GalleryError: the gallery is missing or belongs to another model.
        """
        folder = bundle_folder(model)
        bundle = ModelBundle.open(folder)
        settings = bundle.manifest.segmentation
        if settings is None:
            raise BundleError(f"model bundle {folder} does not segment; choose one that does")
        at_once = 1 if batch > 1 else parallel
        options = SessionOptions(
            threads=threads_of_each(at_once, threads), parallel=at_once, on_state=on_state
        )
        on_state(f"loading {folder}")
        try:
            sessions = _shared_sessions(bundle, session, tuple(providers), batch, options)
        finally:
            on_state("")
        self.gallery = (
            Gallery.open(gallery, model=bundle.embedding_fingerprint, create=False) if gallery else None
        )
        self.pipeline = PerceptionPipeline.from_bundle(folder, session=sessions, gallery=self.gallery)
        can_inspect = bundle.manifest.defects is not None and all(graph in sessions for graph in GRAPHS)
        self.inspector = DefectInspector(bundle, sessions) if can_inspect else None
        self.model = f"{bundle.manifest.name}@{bundle.fingerprint}"
        first = next(iter(getattr(sessions["backbone"], "providers", ())), "")
        self.provider = f"{sessions.choice.name} {first}".strip()
        self.choice = str(sessions.choice)
        self.labels = settings.labels
        self.blank: NDArray[np.uint8] = np.full((*settings.input_size, 3), PADDING_VALUE, np.uint8)
        self._on_gpu = _run_on_gpu(sessions)
        self._can_identify = bundle.manifest.identification is not None
        self._calibrated = settings.score_threshold

    def warm_up(self) -> float:
        """Run once: the first run allocates, and shows here rather than on a frame if a graph does not work.

        Returns:
            Milliseconds.
        """
        started = time.perf_counter()
        self.pipeline.perceive(self.blank)
        return (time.perf_counter() - started) * 1e3

    def threshold(self, score_threshold: float) -> float:
        """The threshold that a parameter value stands for: negative means as calibrated."""
        return self._calibrated if score_threshold < 0 else score_threshold

    def perceive(self, image: NDArray[np.uint8], container: Container, settings: Settings) -> Objects:
        """Perceive the objects of one image.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            container: limits the products.
            settings: thresholds and switches.

        Raises:
            InvalidImageError: the image cannot be used.
        """
        pipeline = self._configured(settings)
        return pipeline.perceive(image, manifest=container.product_ids)

    def look_closer(
        self, image: NDArray[np.uint8], objects: Objects, container: Container, settings: Settings
    ) -> Objects:
        """Identify and inspect objects that another node has segmented.

        Args:
            image: uint8 ``[H, W, 3]`` RGB.
            objects: of that image, with ``instance_mask``.
            container: limits the products.
            settings: thresholds and switches.
        """
        timings: dict[str, float] = {}
        found = self._configured(settings).look_closer(
            image, objects, manifest=container.product_ids, timings_ms=timings
        )
        return found.replace(timings_ms=timings)

    def _configured(self, settings: Settings) -> PerceptionPipeline:
        """A pipeline of the same parts for one image: another thread's may have other settings."""
        pipeline = copy(self.pipeline)
        if self._look_at_gallery()[1]:
            pipeline.gallery = None
        pipeline.score_threshold = self.threshold(settings.score_threshold)
        pipeline.classes = settings.classes
        pipeline.top_k = settings.top_k
        pipeline.identifies = settings.identify and self._can_identify
        pipeline.reject_unknown = settings.reject_unknown
        pipeline.tiling = settings.tiling
        pipeline.inspects = settings.inspect and self.inspector is not None
        return pipeline

    def class_problem(self, classes: Sequence[str]) -> str:
        """Which classes the model does not publish objects of; empty when it does of all."""
        known = [label for label in self.labels if label not in CONTAINERS]
        if not (unknown := sorted(set(classes) - set(known))):
            return ""
        return (
            f"model {self.model} has no objects of class {', '.join(unknown)}; choose from {', '.join(known)}"
        )

    def defect_rule(self, rate: float) -> DefectRule | None:
        """How defects of single objects are decided on at a false-positive rate; None for a model that sees none."""
        return rule_for(self.inspector, "image", rate) if self.inspector else None

    def container(self, container_id: str, product_ids: Sequence[str]) -> tuple[Container, list[str]]:
        """Check a container's manifest against the gallery.

        Args:
            container_id: name of the container.
            product_ids: its products; empty lifts the limit.

        Returns:
            The container, and the products that the gallery does not hold.

        Raises:
            GalleryError: too many products, or an id that is empty or too long.
        """
        if len(product_ids) > MAX_MANIFEST_PRODUCTS:
            raise GalleryError(
                f"{len(product_ids)} products given, at most {MAX_MANIFEST_PRODUCTS} are allowed"
            )
        for name in (container_id, *product_ids):
            if len(name) > MAX_ID_LENGTH:
                raise GalleryError(
                    f"id {name[:40]!r}... has {len(name)} characters, the limit is {MAX_ID_LENGTH}"
                )
        if not all(product_ids):
            raise GalleryError("product_ids holds an empty id; leave it out")
        if not product_ids:
            return (Container(container_id) if container_id else NO_CONTAINER), []
        manifest = tuple(dict.fromkeys(product_ids))
        unknown = self.gallery.unknown(manifest) if self.gallery is not None else list(manifest)
        return Container(container_id, manifest, len(unknown)), unknown

    def _look_at_gallery(self) -> tuple[int, str]:
        """How many products there are, and why they cannot be looked up now; empty when they can.

        Other processes may change the file at any time: embed it again for another model, say, or cut it short.
        """
        if self.gallery is None:
            return 0, ""
        try:
            count, model = len(self.gallery), self.gallery.model
        except Exception as error:  # what a damaged file raises is not known beforehand
            return 0, error_text(error)
        ours = self.pipeline.bundle.embedding_fingerprint
        if model in (None, ours):
            return count, ""
        return 0, f"gallery {self.gallery.path} now holds embeddings of model {model}, not of {ours}"

    def facts(self) -> dict[str, Any]:
        """Keys and values for the diagnostics."""
        products, problem = self._look_at_gallery()
        memory = gpu_memory() if self._on_gpu else None
        figures = {} if memory is None else dict(zip(("used", "total"), memory, strict=True))
        return {
            "model": self.model,
            "provider": self.provider,
            "gallery": "" if self.gallery is None else "yes",
            "gallery_products": products,
            "gallery_problem": problem,
            **{f"gpu_memory_{name}_mb": round(size / 1e6) for name, size in figures.items()},
        }

    def close(self) -> None:
        """Release the gallery."""
        if self.gallery is not None:
            self.gallery.close()


class EngineSlot:
    """The engine in use. Another one can take its place at any time; whoever uses the old one finishes first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._users: Counter[Engine] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def use(self) -> Iterator[Engine]:
        """The present engine, which stays open until the end of the block."""
        with self._changed:
            engine = self._engine
            self._users[engine] += 1
        try:
            yield engine
        finally:
            with self._changed:
                self._users[engine] -= 1
                self._changed.notify_all()

    def replace(self, engine: Engine) -> None:
        """Use another engine from now on, and close the old one as soon as nobody uses it."""
        with self._changed:
            old, self._engine = self._engine, engine
        self._close(old)

    def close(self) -> None:
        """Close the engine as soon as nobody uses it."""
        self._close(self._engine)

    def _close(self, engine: Engine) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._users[engine])
            del self._users[engine]
        engine.close()


def _run_on_gpu(sessions: Sessions) -> bool:
    """Whether graphs run on an NVIDIA GPU of this machine."""
    backbone = sessions["backbone"]
    if providers := getattr(backbone, "providers", ()):
        return any(name.startswith(("CUDA", "Tensorrt", "NvTensorRT")) for name in providers)
    on_cpu = getattr(backbone, "device", "CPU") == "CPU"
    return sessions.choice.name in ("tensorrt", "torch", "torch-package") and not on_cpu


_SESSIONS: WeakValueDictionary[tuple[Any, ...], Sessions] = WeakValueDictionary()
_SESSIONS_LOCK = threading.Lock()


def _shared_sessions(
    bundle: ModelBundle, session: str, providers: tuple[str, ...], batch: int, options: SessionOptions
) -> Sessions:
    """Sessions of a bundle; those already open in this process, where there are some: one backbone in memory."""
    key = (bundle.fingerprint, session, providers, batch, options)
    with _SESSIONS_LOCK:
        sessions = _SESSIONS.get(key)
        if sessions is None:
            sessions = open_sessions(
                bundle, session=session, providers=list(providers) or None, options=options
            )
            _SESSIONS[key] = sessions = batching(sessions, max_rows=batch) if batch > 1 else sessions
        return sessions


def bundle_folder(model: str | Path) -> Path:
    """A bundle named relative to the current folder, or one that is shipped with the package."""
    folder = Path(model)
    if folder.is_absolute() or folder.exists():
        return folder
    try:
        return resource_path(str(model))
    except McaError:
        return folder
