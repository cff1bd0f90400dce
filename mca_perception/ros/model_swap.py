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
from mca_perception.ros.engine import Engine, EngineSlot
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
        problem: why a model cannot be used here; empty when it can.
        trial: what shows how a model does on the latest frame; ``None`` before the first one.
        switched: called with the bundle's folder and the comparison after the switch.
    """

    def __init__(
        self,
        thread: ServiceThread,
        engines: EngineSlot,
        *,
        options: Callable[[], dict[str, Any]],
        problem: Callable[[Engine], str],
        trial: Callable[[], Callable[[Engine], Objects] | None],
        switched: Callable[[str, str], None],
    ) -> None:
        self._engines = engines
        self._options = options
        self._problem = problem
        self._trial = trial
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
            if problem := self._problem(engine):
                raise BundleError(problem)
            response.warm_up_ms = engine.warm_up()
            response.message = self._compare(engine)
        except Exception as error:
            engine.close()
            raise _unusable(request.path, error) from error
        self._engines.replace(engine)
        response.model = engine.model
        self._switched(request.path, f"{engine.model} replaces {response.previous_model}: {response.message}")

    def _compare(self, engine: Engine) -> str:
        trial = self._trial()
        if trial is None:
            return "no frame to compare on yet"
        with self._engines.use() as old:
            before = trial(old)
        return compare(before, trial(engine))


def compare(before: Objects, after: Objects) -> str:
    """How far two models agree about one image, in one line."""
    old, new = _same_objects(before, after)
    line = (
        f"on the last frame {len(after)} objects against {len(before)}, {len(new)} of them the same "
        f"(boxes overlap by {_SAME_OBJECT_IOU:g})"
    )
    if before.product_ids is not None and after.product_ids is not None:
        agreeing = sum(
            before.product_ids[i][:1] == after.product_ids[j][:1] for i, j in zip(old, new, strict=True)
        )
        line += f", {agreeing} with the same product"
    if before.defects is not None and after.defects is not None:
        agreeing = int((before.defects[old].argmax(axis=1) == after.defects[new].argmax(axis=1)).sum())
        line += f", {agreeing} in the same condition"
    times = [objects.timings_ms.get("total", sum(objects.timings_ms.values())) for objects in (before, after)]
    return f"{line}; {times[1]:.0f} ms against {times[0]:.0f} ms"


def _same_objects(before: Objects, after: Objects) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of those objects of ``before`` that ``after`` has too, int64 ``[M]``, and where: the nearest there."""
    if not len(before) or not len(after):
        none = np.zeros(0, np.int64)
        return none, none
    overlaps = box_iou(before.boxes, after.boxes)
    old = np.flatnonzero(overlaps.max(axis=1) >= _SAME_OBJECT_IOU)
    return old, overlaps[old].argmax(axis=1)


def _unusable(path: str, error: Exception) -> McaError:
    if isinstance(error, McaError):
        return error
    return BundleError(f"model bundle {path} fails on a frame ({error}); export it again")
