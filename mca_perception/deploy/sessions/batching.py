"""Several threads on one session: what waits at the same time runs as one batch."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.session import Sessions
from mca_perception.deploy.sessions.base import Arrays, Session
from mca_perception.deploy.sessions.turns import Turns

__all__ = ["BatchingSession", "batching"]


class _Call:
    def __init__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self.inputs = dict(inputs)
        self.rows = len(next(iter(self.inputs.values())))
        self.kind = {name: (array.shape[1:], array.dtype) for name, array in self.inputs.items()}
        self.outputs: Arrays = {}
        self.error: Exception | None = None
        self.is_done = False


class BatchingSession:
    """A session for many threads. Nobody waits for company: a call that finds the device free runs at once, alone.

    Calls of equal shapes that have to wait for the device are joined along the first axis and run together, in the
    order in which they came. A batch that fails is run again call by call, so that one caller's input, or a lack of
    memory for all of them, costs the others nothing.

    Attributes:
        providers: of the session underneath, where it has some.
        device: of the session underneath, where it tells.
    """

    def __init__(self, session: Session, device: Turns, *, max_rows: int) -> None:
        """Wrap a session.

        Args:
            session: runs the batches. Graphs whose first axis is not dynamic everywhere run call by call.
            device: taken in turns with the other graphs on the same device.
            max_rows: rows of a batch; a call that is larger by itself runs alone.
        """
        self._session = session
        self._device = device
        self._max_rows = max_rows if _has_rows(session) else 0
        self._waiting: list[_Call] = []
        self._lock = threading.Lock()
        self.providers: tuple[str, ...] = getattr(session, "providers", ())
        self.device: str = getattr(session, "device", "")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the graph, perhaps together with others' inputs; see :meth:`.GraphSession.run`."""
        call = _Call(inputs)
        with self._lock:
            self._waiting.append(call)
        with self._device:
            if not call.is_done:
                self._run(self._batch_with(call))
        if call.error is not None:
            raise call.error
        return call.outputs

    def _batch_with(self, first: _Call) -> list[_Call]:
        """The call and those that can join it; none of them waits any more."""
        with self._lock:
            self._waiting.remove(first)
            batch, rows = [first], first.rows
            for call in list(self._waiting):
                if call.kind == first.kind and rows + call.rows <= self._max_rows:
                    self._waiting.remove(call)
                    batch.append(call)
                    rows += call.rows
        return batch

    def _run(self, batch: list[_Call]) -> None:
        try:
            joined = (
                batch[0].inputs
                if len(batch) == 1
                else {name: np.concatenate([call.inputs[name] for call in batch]) for name in batch[0].inputs}
            )
            outputs = self._session.run(joined)
        except Exception as error:
            if len(batch) > 1:
                for call in batch:
                    self._run([call])
                return
            batch[0].error = error
            batch[0].is_done = True
            return
        start = 0
        for call in batch:
            call.outputs = (
                outputs
                if len(batch) == 1
                else {name: array[start : start + call.rows] for name, array in outputs.items()}
            )
            start += call.rows
            call.is_done = True


def _has_rows(session: Session) -> bool:
    """Whether every input and output of the graph has the same, dynamic first axis."""
    specs = (*getattr(session, "inputs", ()), *getattr(session, "outputs", ()))
    first = {spec.shape[0] if spec.shape else 0 for spec in specs}
    return len(first) == 1 and isinstance(first.pop(), str)


def batching(sessions: Sessions, *, max_rows: int) -> Sessions:
    """The same sessions for many threads, which take turns on their device and share its batches."""
    device = Turns()
    return Sessions(
        sessions.choice,
        {name: BatchingSession(session, device, max_rows=max_rows) for name, session in sessions.items()},
    )
