"""The book's classifier, and an LSTM, on 10,000 real digits. Minutes long."""

import json
from pathlib import Path

import pytest

from throughtime.fit.command_line import run_command

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist10k"

pytestmark = pytest.mark.slow


def accuracy_of(run: Path, *words: str) -> float:
    assert run_command(["fit", "--data", f"idx:{MNIST}", "--units", "150", "--run", str(run), *words]) == 0
    return json.loads((run / "results.json").read_text())["test_accuracy"]


def test_the_books_classifier(tmp_path: Path) -> None:
    """TensorFlow 1.15 reaches 95.2 to 96.2 % between its epochs 20 and 50."""
    assert accuracy_of(tmp_path / "run", "--cell", "BasicRNNCell") >= 0.95


def test_an_lstm(tmp_path: Path) -> None:
    words = ["--cell", "LSTMCell", "--learning-rate", "0.004", "--schedule", "cosine", "--dropout", "0.3"]
    assert accuracy_of(tmp_path / "run", *words, "--clip", "1", "--epochs", "40") >= 0.975
