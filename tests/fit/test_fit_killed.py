"""A run killed with SIGKILL in the middle of epochs, more than once, ends bit for bit like one that was not."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from throughtime.fit.checkpoint import load_tensors

# Noise from all three generators, and an end after so many steps of the cell in this process.
CELL = """
import os, random, signal
import numpy as np
import torch
from torch import nn

STEPS = int(os.environ.get("KILLED_AFTER", -1))
taken = 0

class Noisy(nn.Module):
    def __init__(self, units, input_size):
        super().__init__()
        self.inner, self.state_size = nn.Linear(input_size + units, units), units
    def forward(self, x, h):
        global taken
        taken += 1
        if taken == STEPS:
            os.kill(os.getpid(), signal.SIGKILL)
        h = torch.tanh(self.inner(torch.cat([x, h], 1)))
        if self.training:
            h = nn.functional.dropout(h, 0.2) * (1 + 0.1 * random.random()) + 0.01 * np.random.rand()
        return h, h
"""
STEPS_OF_A_BATCH = 8
BATCHES, VALIDATION = 9, 2  # of an epoch on `digits`


def run_fit(directory: Path, run: str, *words: str, killed_after: int | None = None) -> int:
    (directory / "noisy.py").write_text(CELL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(directory), *sys.path])}
    if killed_after is not None:
        environment["KILLED_AFTER"] = str(killed_after)
    command = [
        sys.executable, "-m", "throughtime", "fit", "--cell", "noisy:Noisy", "--units", "12", "--epochs", "3",
        "--backend", "portable", "--checkpoint-every", "4", "--run", run, *words,
    ]  # fmt: skip
    return subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL).returncode


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    epoch = STEPS_OF_A_BATCH * (BATCHES + VALIDATION)
    in_second_epoch = epoch + STEPS_OF_A_BATCH * 6 + 3  # two batches past a checkpoint, within a batch
    in_validation = STEPS_OF_A_BATCH * (5 + BATCHES + 1) + 3  # of the last epoch, counted from that checkpoint
    assert run_fit(tmp_path, "killed", killed_after=in_second_epoch) == -signal.SIGKILL
    assert len(rows_of(tmp_path / "killed")) == 1
    assert run_fit(tmp_path, "killed", "--resume", killed_after=in_validation) == -signal.SIGKILL
    assert len(rows_of(tmp_path / "killed")) == 2
    assert run_fit(tmp_path, "killed", "--resume") == 0
    assert run_fit(tmp_path, "whole") == 0

    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    for name in ("model.safetensors", "checkpoint.safetensors"):
        (killed, _), (whole, _) = (load_tensors(tmp_path / run / name) for run in ("killed", "whole"))
        assert killed.keys() == whole.keys()
        for key, tensor in whole.items():
            assert torch.equal(killed[key], tensor), key
