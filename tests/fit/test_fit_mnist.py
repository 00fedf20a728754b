"""The book's classifier, and an LSTM, on 10,000 real digits: MNIST's own files, which are no part of this repository.

    THROUGHTIME_MNIST=DIRECTORY .venv/bin/python -m pytest -m slow tests/fit/test_fit_mnist.py

runs them, minutes each; without the variable the files are looked for beside the repository.
"""

import json
import os
from pathlib import Path

import pytest

from throughtime.fit.command_line import run_command

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "mnist10k"
MNIST = Path(os.environ.get("THROUGHTIME_MNIST", BESIDE))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MNIST.is_dir(), reason=f"there is no {MNIST}: set THROUGHTIME_MNIST to MNIST's directory"),
]


def accuracy_of(run: Path, *words: str) -> float:
    """Of a run of 150 units; the files' own test part is held out."""
    given = ["--data", f"idx:{MNIST}", "--units", "150", "--batch", "150", "--run", str(run)]
    assert run_command(["fit", *given, *words]) == 0
    return json.loads((run / "results.json").read_text())["test_accuracy"]


def test_the_books_classifier(tmp_path: Path) -> None:
    """TensorFlow 1.15 reaches 95.2 to 96.2 % between its epochs 20 and 50."""
    words = ["--cell", "BasicRNNCell", "--learning-rate", "0.001", "--epochs", "60"]
    assert accuracy_of(tmp_path / "run", *words) >= 0.95


def test_an_lstm(tmp_path: Path) -> None:
    """It gave 98.2 %."""
    words = ["--cell", "LSTMCell", "--learning-rate", "0.004", "--schedule", "cosine", "--dropout", "0.3"]
    assert accuracy_of(tmp_path / "run", *words, "--clip", "1", "--epochs", "40") >= 0.975
