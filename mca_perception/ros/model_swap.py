"""The service ``load_model``: another model takes over while the old one keeps working."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mca_perception_msgs.srv import LoadModel
from numpy.typing import NDArray

from mca_perception.errors import BundleError, McaError
from mca_perception.geometry import box_iou
from mca_perception.objects import Objects
from mca_perception.ros.engine import Engine, EngineSlot, Settings
from mca_perception.ros.frames import Container
from mca_perception.ros.service_threads import ServiceThread
from mca_perception.ros.watchdog import may_take_long

__all__ = ["ModelSwap", "compare"]

_SAME_OBJECT_IOU = 0.5


class ModelSwap:
    """Loads a bundle beside the one in use, tries it on a frame, and switches between two frames.

    Args:
        thread: offers the service; no other service should wait for it.
        engines: holds the model in use.
        options: arguments of :class:`.Engine` besides the model: gallery and providers.
        frame: a recent image; ``None`` before the first one.
        container: the container that is set.
        settings: the present settings.
        switched: called with the bundle's folder and the comparison after the switch.
    """

    def __init__(
        self,
        thread: ServiceThread,
        engines: EngineSlot,
        *,
        options: Callable[[], dict[str, Any]],
        frame: Callable[[], NDArray[np.uint8] | None],
        container: Callable[[], Container],
        settings: Callable[[], Settings],
        switched: Callable[[str, str], None],
    ) -> None:
        self._engines = engines
        self._options = options
        self._frame = frame
        self._container = container
        self._settings = settings
        self._switched = switched
        thread.add(LoadModel, "load_model", self._load)

    def _load(self, request: LoadModel.Request, response: LoadModel.Response) -> None:
        with self._engines.use() as engine:
            response.model = response.previous_model = engine.model
        if not request.path:
            raise BundleError("path is empty; give the folder of a model bundle")
        started = time.perf_counter()
        with may_take_long():  # some libraries keep the interpreter's lock while they build
            engine = Engine(request.path, **self._options())
        response.load_ms = (time.perf_counter() - started) * 1e3
        try:
            if problem := engine.class_problem(self._settings().classes):
                raise BundleError(f"{problem}; set `classes` first")
            response.warm_up_ms = engine.warm_up()
            response.message = self._compare(engine)
        except Exception as error:
            engine.close()
            raise _unusable(request.path, error) from error
        self._engines.replace(engine)
        response.model = engine.model
        self._switched(request.path, f"{engine.model} replaces {response.previous_model}: {response.message}")

    def _compare(self, engine: Engine) -> str:
        image = self._frame()
        if image is None:
            return "no frame to compare on yet"
        container, settings = self._container(), self._settings()
        with self._engines.use() as old:
            before = old.perceive(image, container, settings)
        return compare(before, engine.perceive(image, container, settings))


def compare(before: Objects, after: Objects) -> str:
    """How far two models agree about one image, in one line."""
    found = 0
    if len(before) and len(after):
        found = int((box_iou(before.boxes, after.boxes).max(axis=1) >= _SAME_OBJECT_IOU).sum())
    times = [objects.timings_ms.get("total", 0.0) for objects in (before, after)]
    return (
        f"on the last frame {len(after)} objects against {len(before)}, {found} of them the same "
        f"(boxes overlap by {_SAME_OBJECT_IOU:g}); {times[1]:.0f} ms against {times[0]:.0f} ms"
    )


def _unusable(path: str, error: Exception) -> McaError:
    if isinstance(error, McaError):
        return error
    return BundleError(f"model bundle {path} fails on a frame ({error}); export it again")
