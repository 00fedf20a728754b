"""Two processes with the same batches between them learn what one learns, up to rounding."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fit.made_data import ragged_rows, write_parquet
from throughtime.fit.command_line import run_command


def curve(run: Path) -> np.ndarray:
    with (run / "metrics.csv").open() as file:
        return np.asarray([[float(v) for k, v in row.items() if k != "seconds"] for row in csv.DictReader(file)])


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    """Float64, so that rounding is small; 97 sequences in batches of 16 leave one row, and a process without any."""
    rows = ragged_rows(120)
    rows["part"] = ["train"] * 97 + ["validation"] * 11 + ["test"] * 12
    path = write_parquet(tmp_path / "ragged.parquet", **rows)
    words = [
        "fit", "--data", f"parquet:{path}", "--split-column", "part", "--cell", "GRUCell", "--units", "6",
        "--batch", "16", "--epochs", "3", "--precision", "64-true", "--learning-rate", "0.01",
    ]  # fmt: skip
    assert run_command([*words, "--run", str(tmp_path / "alone")]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "throughtime", *words, "--run-directory", str(tmp_path / "together")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1, "one process speaks for both"
    alone, together = curve(tmp_path / "alone"), curve(tmp_path / "together")
    assert alone.shape == (3, 6)
    assert alone[2, 2] < alone[0, 2], "it learned something"
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-9)
