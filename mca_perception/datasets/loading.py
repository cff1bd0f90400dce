"""How training reads a data set: batches in the random order of a seed, from worker processes. For training alone."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["training_loader"]


def training_loader(
    dataset: Dataset[Any],
    batches: int | Sampler[list[int]],
    *,
    seed: int,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """One pass over ``dataset``.

    Args:
        dataset: has a length and, in worker processes, can be pickled.
        batches: size of a batch, drawn in random order with an incomplete last one left out; or what draws the batches.
        seed: of the order and of the workers.
        workers: processes that read.
        collate: joins items to a batch; torch's own when not given.
    """
    drawn: dict[str, Any] = (
        {"batch_size": batches, "shuffle": True, "drop_last": True}
        if isinstance(batches, int)
        else {"batch_sampler": batches}
    )
    return DataLoader(
        dataset,
        **drawn,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_initialise_worker,
        # A plain fork of a process with running compute threads can deadlock the child on a lock that one of them held.
        multiprocessing_context="forkserver" if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )


def _initialise_worker(_: int) -> None:
    """One OpenCV thread per worker; Ctrl-C is for the main process, which saves before it stops."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
