"""Whole runs, in this process: what fit leaves, and that evaluate and predict agree with it."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fit.made_data import ragged_rows, write_parquet
from throughtime.fit import commands, keeper
from throughtime.fit.checkpoint import load_tensors
from throughtime.fit.command_line import run_command
from throughtime.fit.commands import evaluate, fit, predict
from throughtime.fit.errors import FitError
from throughtime.fit.options import DataOptions, ModelOptions, Options, TrainingOptions
from throughtime.fit.run_directory import RunDirectory

Out = pytest.CaptureFixture[str]


def rows_of(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the clock."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def small(run: Path, **training: object) -> Options:
    """The options of `small_run`, with some of the training's changed."""
    options = RunDirectory(run).read_options()
    return Options(options.data, options.model, TrainingOptions(**{**vars(options.training), **training}))


@pytest.fixture(autouse=True)
def _no_report(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings; `small_run` has a report to look at."""
    monkeypatch.setattr(commands, "write_report", lambda directory, *_: directory.report.write_text("not drawn"))


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def test_what_a_run_leaves(small_run: Path) -> None:
    names = {path.name for path in small_run.iterdir()}
    assert names == {
        "config.yaml", "data.json", "model.safetensors", "checkpoint.safetensors", "metrics.csv", "tensorboard",
        "report.html", "results.json",
    }  # fmt: skip
    rows = rows_of(small_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])
    events = EventAccumulator(str(small_run / "tensorboard"))
    events.Reload()
    curve = events.Scalars("epoch/validation_accuracy")
    assert [event.step for event in curve] == [9, 18, 27]
    assert np.allclose([event.value for event in curve], [float(row["validation_accuracy"]) for row in rows])
    assert len(events.Scalars("step/train_loss")) == 27


def test_no_file_of_a_run_is_a_pickle(small_run: Path) -> None:
    for path in small_run.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:4]
            assert head[:1] != b"\x80", path
            assert head != b"PK\x03\x04", path


def test_the_report_stands_alone(small_run: Path) -> None:
    page = (small_run / "report.html").read_text()
    assert page.count("<svg") == 5
    accuracy = json.loads((small_run / "results.json").read_text())["test_accuracy"]
    assert f"{100 * accuracy:.2f} %" in page
    for heading in ("How it learned", "What it mixes up", "Where it was wrong", "keeps in mind", "gradient vanishes"):
        assert heading in page
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(https?:|//|file:)[^"') ]*""", page)
    assert not outside, "the page fetches nothing"


def test_evaluate_agrees_with_fit(small_run: Path, capsys: Out) -> None:
    evaluate(small_run, None, "test", None)
    out = capsys.readouterr().out
    results = json.loads((small_run / "results.json").read_text())
    assert f"accuracy {100 * results['test_accuracy']:.2f} %" in out
    assert f"loss {results['test_loss']:.4f}" in out
    assert f"weights of epoch {results['best_epoch']}" in out


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_predict_writes_what_evaluate_counts(small_run: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"said{suffix}"
    predict(small_run, None, "test", out, None)
    if suffix == ".csv":
        with out.open() as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    else:
        rows = pq.read_table(out).to_pylist()
    results = json.loads((small_run / "results.json").read_text())
    right = np.mean([row["prediction"] == row["label"] for row in rows])
    assert right == pytest.approx(results["test_accuracy"], abs=1e-12)
    assert [row["row"] for row in rows] == sorted(row["row"] for row in rows)
    for row in rows:
        said = [row[f"p_{digit}"] for digit in range(10)]
        assert sum(said) == pytest.approx(1)
        assert row["probability"] == max(said) == said[int(row["prediction"])]


def test_predict_on_a_file_without_labels(tmp_path: Path, capsys: Out) -> None:
    known = write_parquet(tmp_path / "known.parquet", **ragged_rows(120))
    run, new = tmp_path / "run", {"steps": ragged_rows(9, seed=5)["steps"]}
    fit(Options(DataOptions(data=f"parquet:{known}"), ModelOptions(units=8), TrainingOptions(epochs=1)), run, False)
    predict(run, f"parquet:{write_parquet(tmp_path / 'new.parquet', **new)}", "all", tmp_path / "said.parquet", None)
    table = pq.read_table(tmp_path / "said.parquet")
    assert table.column_names == ["row", "prediction", "probability", "p_down", "p_up"]
    assert table.column("row").to_pylist() == list(range(9))
    assert set(table.column("prediction").to_pylist()) <= {"up", "down"}
    assert "9 predictions" in capsys.readouterr().out


def test_tokens_are_learned(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = ["good", "bad", "it", "is", "so", "this"]
    rows = [[words[i] for i in random.integers(2, 6, n)] for n in random.integers(0, 9, 300)]
    labels = [["bad", "good"][i] for i in random.integers(0, 2, 300)]
    steps = [[*row, label, *row] for row, label in zip(rows, labels)]
    path = write_parquet(tmp_path / "talk.parquet", words=steps, label=labels)
    run = tmp_path / "run"
    options = Options(
        DataOptions(data=f"parquet:{path}"),
        ModelOptions(cell="GRUCell", units=16, embed=8),
        TrainingOptions(epochs=12, batch=16, learning_rate=0.01),
    )
    fit(options, run, False)
    assert json.loads((run / "results.json").read_text())["test_accuracy"] > 0.95
    evaluate(run, None, "all", None)


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    options = Options(DataOptions(validation=0), ModelOptions(units=4), TrainingOptions(epochs=2))
    fit(options, tmp_path / "run", False)
    assert rows_of(tmp_path / "run")[1]["validation_loss"] == ""
    assert json.loads((tmp_path / "run" / "results.json").read_text())["best_epoch"] == 2
    with pytest.raises(FitError, match="has no sequences in its"):
        evaluate(tmp_path / "run", None, "validation", None)


def test_the_saved_weights_are_those_of_the_best_epoch(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "_rank", lambda row: -abs(row["epoch"] - 2))
        fit(small(small_run), tmp_path / "second", resume=False)
    fit(small(small_run, epochs=2), tmp_path / "shorter", resume=False)
    saved, metadata = load_tensors(tmp_path / "second" / "model.safetensors")
    last, _ = load_tensors(tmp_path / "shorter" / "checkpoint.safetensors")
    assert metadata == {"epoch": "2"}
    for name, weight in saved.items():
        assert torch.equal(weight, last[f"checkpoint.state_dict.model.{name}"])


def test_the_best_epoch_is_chosen_by_validation() -> None:
    def row(epoch: int, accuracy: float | None, loss: float | None) -> keeper.Epoch:
        return {"epoch": epoch, "validation_accuracy": accuracy, "validation_loss": loss}

    validated = [row(1, 0.5, 1.0), row(2, 0.9, 0.4), row(3, 0.9, 0.3), row(4, 0.8, 0.1)]
    assert max(validated, key=keeper._rank)["epoch"] == 3
    assert max([row(1, None, None), row(2, None, None)], key=keeper._rank)["epoch"] == 2


def test_a_finished_run_is_shown_again(small_run: Path, capsys: Out) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    fit(small(small_run), small_run, resume=True)
    out = capsys.readouterr().out
    assert "finished" in out
    assert "test accuracy" in out
    assert str(small_run / "report.html") in out
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*")} == before


def test_the_cosine_schedule(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the learning rate to nothing over the whole run, which then cannot be made longer."""
    rates: list[float] = []

    def note(self: keeper.RunKeeper, trainer: Any, *_: object) -> None:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    monkeypatch.setattr(keeper.RunKeeper, "on_train_batch_end", note)
    fit(small(small_run, schedule="cosine", learning_rate=0.5), tmp_path / "run", resume=False)
    assert np.allclose(rates, 0.25 * (1 + np.cos(np.pi * np.arange(27) / 27)))
    with pytest.raises(FitError, match="holds a run with another configuration"):
        fit(small(small_run, schedule="cosine", learning_rate=0.5, epochs=5), tmp_path / "run", resume=True)


def test_a_finished_run_can_go_further(small_run: Path, tmp_path: Path) -> None:
    """Three epochs and then two more are five epochs, bit for bit."""
    longer = copy(small_run, tmp_path / "longer")
    fit(small(small_run, epochs=5), longer, resume=True)
    fit(small(small_run, epochs=5), tmp_path / "whole", resume=False)
    assert rows_of(longer) == rows_of(tmp_path / "whole")
    (a, _), (b, _) = (load_tensors(run / "checkpoint.safetensors") for run in (longer, tmp_path / "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["_take_row", "_write", "_save"])
def test_killed_between_the_files_of_an_epoch(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before the second epoch's row, before its files, and after them but before its checkpoint."""
    method = getattr(keeper.RunKeeper, place)

    def stop_at_second(self: keeper.RunKeeper, *args: object) -> object:
        if len(self.history) == (1 if place == "_take_row" else 2):
            raise Killed
        return method(self, *args)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(keeper.RunKeeper, place, stop_at_second)
        with pytest.raises(Killed):
            fit(small(small_run), run, resume=False)
    fit(small(small_run), run, resume=True)
    assert rows_of(run) == rows_of(small_run)
    for name in ("model.safetensors", "checkpoint.safetensors"):
        (a, _), (b, _) = (load_tensors(r / name) for r in (run, small_run))
        assert all(torch.equal(a[key], b[key]) for key in a | b)


def test_another_configuration_is_refused(small_run: Path) -> None:
    options = small(small_run, batch=10)
    with pytest.raises(FitError, match="holds a run with another configuration") as caught:
        fit(options, small_run, resume=True)
    assert "batch: there 150, asked for 10" in str(caught.value)
    with pytest.raises(FitError, match="holds a run with another configuration"):
        fit(small(small_run, epochs=2), small_run, resume=True)


def test_a_finished_run_is_not_trained_again_by_accident(small_run: Path) -> None:
    with pytest.raises(FitError, match="with this configuration") as caught:
        fit(small(small_run), small_run, resume=False)
    assert "a finished run" in str(caught.value)
    assert "--resume" in str(caught.value)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FitError, match="exists and is not the directory of a run"):
        fit(Options(DataOptions(), ModelOptions(), TrainingOptions()), tmp_path, resume=True)


def test_what_a_killed_beginning_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.part").write_text("da")
    fit(Options(DataOptions(), ModelOptions(units=4), TrainingOptions(epochs=1)), tmp_path, resume=True)
    assert (tmp_path / "report.html").exists()


def test_data_that_changed_cannot_be_resumed(tmp_path: Path) -> None:
    path, run = tmp_path / "x.parquet", tmp_path / "run"
    options = Options(DataOptions(data=f"parquet:{path}"), ModelOptions(units=4), TrainingOptions(epochs=1))
    write_parquet(path, **ragged_rows(60))
    fit(options, run, resume=False)
    (run / "results.json").unlink()
    write_parquet(path, **ragged_rows(60, seed=1))
    with pytest.raises(FitError, match="the data has changed since"):
        fit(options, run, resume=True)


def test_no_run_to_read(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="is not the directory of a run: there is no"):
        evaluate(tmp_path, None, "test", None)


def test_half_a_configuration(small_run: Path, tmp_path: Path) -> None:
    run = copy(small_run, tmp_path / "run")
    (run / "config.yaml").write_text("data: digits\n")
    with pytest.raises(FitError, match="is not a whole configuration"):
        evaluate(run, None, "test", None)


def test_a_run_without_a_model_yet(small_run: Path, tmp_path: Path) -> None:
    run = copy(small_run, tmp_path / "run")
    (run / "model.safetensors").unlink()
    with pytest.raises(FitError, match="holds no trained model yet"):
        predict(run, None, "all", tmp_path / "x.csv", None)


def test_predictions_have_a_known_format(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FitError, match="--out must end in"):
        predict(small_run, None, "all", tmp_path / "x.xlsx", None)


def test_the_configuration_can_be_read_again(small_run: Path, tmp_path: Path) -> None:
    assert run_command(["fit", "--config", str(small_run / "config.yaml"), "--run", str(tmp_path / "again")]) == 0
    assert rows_of(tmp_path / "again") == rows_of(small_run)
