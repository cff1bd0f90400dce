"""One run in several processes, started by torchrun or another launcher that sets its environment variables.

Every process holds the whole model and works on its own batches; gradients are averaged before each optimiser step,
so the weights stay the same everywhere. Gradients are reduced here and not by ``DistributedDataParallel``: the losses
of several tasks reach the backbone by different ways, and not every task takes part in every step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Sampler

from mca_perception.errors import RecipeError

# Elements of one reduced buffer (32 MiB of float32): few calls, and no second copy of all gradients.
BUCKET_ELEMENTS = 2**23
# The other processes wait while the first validates.
TIMEOUT = timedelta(hours=2)
# Seeds of a loader's workers are consecutive; no loader has as many.
WORKERS_PER_PROCESS = 1000


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        index: number of this process, from 0.
        count: how many there are.
        local_index: number of this process on its machine.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.index == 0

    def own_device(self, device: torch.device) -> torch.device:
        """``device``, or this process' own GPU where several processes share the machine.

        Raises:
            RecipeError: the machine has fewer GPUs than processes.
        """
        if self.count == 1 or device != torch.device("cuda"):
            return device
        available = torch.cuda.device_count()
        if self.local_index >= available:
            raise RecipeError(
                f"process {self.local_index} finds {available} GPUs; start one process per GPU or set device=cpu"
            )
        return torch.device("cuda", self.local_index)

    def share(self, loader: Iterable[Any]) -> Iterable[Any]:
        """This process' batches out of one pass: of every ``count`` consecutive batches the ``index``-th.

        Args:
            loader: one pass over all data, in the same order in every process. Worker processes get other seeds in
                every process.

        Raises:
            TypeError: ``loader`` is no :class:`~torch.utils.data.DataLoader` of batches.
        """
        if self.count == 1:
            return loader
        if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            raise TypeError("only a DataLoader of batches can be shared out between processes")
        return DataLoader(
            loader.dataset,
            batch_sampler=_EveryNth(loader.batch_sampler, self),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=_WorkerSeed(loader.worker_init_fn, self.index),
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
        )

    @torch.no_grad()
    def copy_first(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; one that a process lacks counts as zero there."""
        if self.count == 1:
            return
        device = parameters[0].device
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        shared = [p for p, anywhere in zip(parameters, used.tolist(), strict=True) if anywhere]
        for bucket in _buckets(shared):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            sizes = [gradient.numel() for gradient in gradients]
            parts = torch.split(flat.div_(self.count), sizes)
            for parameter, gradient, part in zip(bucket, gradients, parts, strict=True):
                parameter.grad = gradient.copy_(part.view_as(gradient))

    def agree(self, minutes: float, wish: bool, device: torch.device) -> tuple[float, bool]:
        """The longest time, and whether any process wishes: what all of them go by."""
        if self.count == 1:
            return minutes, wish
        both = torch.tensor([minutes, float(wish)], dtype=torch.float64, device=device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        longest, wished = both.tolist()
        return longest, wished > 0


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes that a launcher started; without a launcher there is one.

    Args:
        device: what the run computes on; GPUs talk through NCCL, CPUs through Gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    processes = Processes(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    try:
        if device.type == "cuda":
            torch.cuda.set_device(processes.own_device(device))
        yield processes
    finally:
        dist.destroy_process_group()


class _EveryNth(Sampler[list[int]]):
    """The batches of one process; every process has the same number, so a few at the end may be left out."""

    def __init__(self, batches: Any, processes: Processes) -> None:
        self.batches, self.processes = batches, processes

    def __len__(self) -> int:
        return len(self.batches) // self.processes.count

    def __iter__(self) -> Iterator[list[int]]:
        last = len(self) * self.processes.count
        for number, batch in zip(range(last), self.batches, strict=False):
            if number % self.processes.count == self.processes.index:
                yield batch


@dataclass(frozen=True)
class _WorkerSeed:
    """Set-up of a loader's worker process that makes its random numbers differ from the other processes' workers."""

    initialise: Callable[[int], None] | None
    index: int

    def __call__(self, worker: int) -> None:
        torch.manual_seed(torch.initial_seed() + self.index * WORKERS_PER_PROCESS)
        if self.initialise is not None:
            self.initialise(worker)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of one type, up to ``BUCKET_ELEMENTS`` together unless one alone is larger."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        full = size + parameter.numel() > BUCKET_ELEMENTS
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
