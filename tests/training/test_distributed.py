"""Several processes: what each gets, and that together they train like one with a larger batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from mca_perception.training.distributed import Processes
from tests.conftest import ROOT
from tests.support.toy_task import ToyTask

# Sums in another order: float32 rounding over two optimiser steps.
TOLERANCE = 1e-6


class RandomNumbers(Dataset[torch.Tensor]):
    """Two items that are drawn when they are read."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(())


def test_processes_share_a_pass() -> None:
    loader = ToyTask(4).batches(1)
    assert Processes().share(loader) is loader
    whole = [batch[0] for batch in ToyTask(4).batches(1)]
    parts = [[batch[0] for batch in Processes(n, 3).share(ToyTask(4).batches(1))] for n in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]  # 8 batches: two are left over
    for number, batch in enumerate(whole[:6]):
        assert torch.equal(parts[number % 3][number // 3], batch)


def test_workers_of_different_processes_draw_differently() -> None:
    dataset = RandomNumbers()
    drawn = [
        float(batch[0])
        for index in (0, 1)
        for batch in Processes(index, 2).share(
            DataLoader(dataset, 1, num_workers=1, generator=torch.Generator().manual_seed(0))
        )
    ]
    assert len(set(drawn)) == 2


def test_only_batches_can_be_shared() -> None:
    with pytest.raises(TypeError, match="DataLoader of batches"):
        Processes(0, 2).share(iter(()))
    with pytest.raises(TypeError, match="DataLoader of batches"):
        Processes(0, 2).share(DataLoader(ToyTask(4).dataset, batch_size=None))


def test_alone_nothing_changes() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    Processes().average_gradients([parameter])
    assert parameter.grad.tolist() == [3, 3]
    assert Processes().agree(2.5, True, torch.device("cpu")) == (2.5, True)
    assert Processes().own_device(torch.device("cpu")) == torch.device("cpu")


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


def launch(*arguments: object) -> int:
    """Run a program; returns its exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=False, env=environment, cwd=ROOT, timeout=200).returncode


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    assert launch("-m", "tests.support.toy_task", tmp_path / "one", 8, 2, -1) == 0
    assert launch(*LAUNCHER, "-m", "tests.support.toy_task", tmp_path / "two", 4, 2, -1) == 0
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < TOLERANCE
    state = torch.load(tmp_path / "two" / "state.pt", weights_only=True)
    assert state["step"] == 2
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 1  # of the first process alone


@pytest.mark.slow
def test_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    assert launch(*LAUNCHER, "-m", "tests.support.toy_task", tmp_path, 4, 100_000, 5) != 0
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 6
    assert not (tmp_path / "weights.safetensors").exists()
