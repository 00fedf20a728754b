"""The report for every kind of data: pictures, curves, wide steps, words; and for a model that makes no mistake."""

from pathlib import Path

import numpy as np
import pytest

from fit.made_data import write_parquet
from throughtime.fit.commands import fit
from throughtime.fit.options import DataOptions, ModelOptions, Options, TrainingOptions


def report_of(tmp_path: Path, steps: list, labels: list, epochs: int = 1, **model: object) -> str:
    path = write_parquet(tmp_path / "data.parquet", steps=steps, label=labels)
    options = Options(
        DataOptions(data=f"parquet:{path}"),
        ModelOptions(units=6, **model),  # type: ignore[arg-type]
        TrainingOptions(epochs=epochs, batch=16, learning_rate=0.01),
    )
    fit(options, tmp_path / "run", resume=False)
    return (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("width", [1, 12])
def test_numbers_of_uneven_length(tmp_path: Path, width: int) -> None:
    random = np.random.default_rng(0)
    steps = [random.standard_normal((n, width)).tolist() for n in random.integers(0, 9, 60)]
    page = report_of(tmp_path, steps, random.integers(0, 3, 60).tolist(), layers=2)
    assert page.count("<svg") == 5
    assert "lined up at their ends" in page


def test_words_are_shown_as_text(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    steps = [[f"<w{i}>" for i in random.integers(0, 9, n)] for n in random.integers(1, 9, 60)]
    page = report_of(tmp_path, steps, random.choice(["a & b", "c"], 60).tolist(), embed=4)
    assert "&lt;w3&gt;" in page
    assert "<w3>" not in page
    assert "a &amp; b" in page


def test_no_mistakes(tmp_path: Path) -> None:
    labels = [i % 2 for i in range(60)]
    page = report_of(tmp_path, [[label * 2.0 - 1] * 3 for label in labels], labels, epochs=20)
    assert "It made no mistake." in page
    assert "Where it was wrong" not in page


def test_only_empty_sequences_to_test_on(tmp_path: Path) -> None:
    steps = [[1.0, 2.0]] * 40 + [[]] * 10
    path = write_parquet(tmp_path / "x.parquet", s=steps, label=[0, 1] * 25, part=["train"] * 40 + ["test"] * 10)
    options = Options(
        DataOptions(data=f"parquet:{path}", split_column="part"), ModelOptions(units=4), TrainingOptions(epochs=1)
    )
    fit(options, tmp_path / "run", resume=False)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "keeps in mind" not in page
    assert "gradient vanishes" not in page
