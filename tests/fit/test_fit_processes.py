"""Two processes with the same batches between them learn what one learns, up to rounding."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fit.made_data import ragged_rows, write_parquet
from fit.made_pairs import write_pairs
from throughtime.fit.command_line import run_command


def curve(run: Path) -> np.ndarray:
    with (run / "metrics.csv").open() as file:
        return np.asarray([[float(v) for k, v in row.items() if k != "seconds"] for row in csv.DictReader(file)])


def check_together_as_alone(words: list[str], directory: Path) -> np.ndarray:
    """The curves of one process and of two agree; that of one is returned. Float64, so that rounding is small."""
    words = [*words, "--precision", "64-true"]
    assert run_command([*words, "--run", str(directory / "alone")]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "throughtime", *words, "--run-directory", str(directory / "together")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("with the weights of epoch") == 1, "one process speaks for both"
    alone, together = curve(directory / "alone"), curve(directory / "together")
    assert together == pytest.approx(alone, rel=1e-6, abs=1e-9)
    return alone


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    """97 sequences in batches of 16 leave one row, and a process without any."""
    rows = ragged_rows(120)
    rows["part"] = ["train"] * 97 + ["validation"] * 11 + ["test"] * 12
    path = write_parquet(tmp_path / "ragged.parquet", **rows)
    words = [
        "fit", "--data", f"parquet:{path}", "--split-column", "part", "--cell", "GRUCell", "--units", "6",
        "--batch", "16", "--epochs", "3", "--learning-rate", "0.01",
    ]  # fmt: skip
    alone = check_together_as_alone(words, tmp_path)
    assert alone.shape == (3, 6)
    assert alone[2, 2] < alone[0, 2], "it learned something"


@pytest.mark.slow
def test_sequences_to_sequences(tmp_path: Path) -> None:
    """33 pairs in batches of 8 leave one row, and a process without any."""
    path = write_pairs(tmp_path / "letters.tsv", 43)
    words = ["fit", "--task", "transduce", "--data", f"tsv:{path}", "--validation", "0.12", "--test", "0.12"]
    alone = check_together_as_alone([*words, "--units", "6", "--batch", "8", "--epochs", "2"], tmp_path)
    assert alone[1, 2] < alone[0, 2], "it learned something"


@pytest.mark.slow
def test_running_text(tmp_path: Path) -> None:
    """Five rows of text: three for one process, two for the other."""
    (tmp_path / "cat.txt").write_text("the cat sat on the mat. " * 30)
    words = ["fit", "--task", "language-model", "--data", f"text:{tmp_path}/cat.txt", "--window", "8", "--layers", "2"]
    alone = check_together_as_alone([*words, "--units", "6", "--batch", "5", "--epochs", "2"], tmp_path)
    assert alone[1, 2] < alone[0, 2], "it learned something"
