"""Sequences to sequences: what the model computes, what a run leaves, how it is measured and used."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sacrebleu import corpus_bleu
from torch.nn.functional import cross_entropy

import throughtime
from fit.made_pairs import check_killed_and_resumed, transducer, write_pairs
from throughtime.fit import commands
from throughtime.fit.command_line import run_command
from throughtime.fit.commands import evaluate, fit, predict
from throughtime.fit.errors import FitError
from throughtime.fit.run_directory import RunDirectory
from throughtime.fit.tasks.transduce.model import Transducer, build_transducer
from throughtime.fit.tasks.transduce.pairs import PairBatch, Pairs, pad_pairs, read_pairs
from throughtime.fit.tasks.transduce.said import edit_distance

Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has learned something, but not all."""
    directory = tmp_path_factory.mktemp("pairs")
    fit(transducer(write_pairs(directory / "letters.tsv", 240), epochs=6, learning_rate=0.02), directory / "run", False)
    return directory / "run"


def first_batch(path: Path, **model: object) -> tuple[Transducer, PairBatch]:
    options = transducer(path, model)
    data = read_pairs(options.data)
    rows = np.arange(7)
    return build_transducer(options.model, data.encoding, seed=1).eval(), pad_pairs(data.train, rows, rows)


@pytest.mark.parametrize("model", [{}, {"cell": "LSTMCell", "layers": 2, "attention": "bahdanau"}])
def test_teacher_forcing_is_a_loop_over_the_decoder(tmp_path: Path, model: dict) -> None:
    transducer, batch = first_batch(write_pairs(tmp_path / "x.tsv"), **model)
    with torch.no_grad():
        logits = transducer(batch)
        for row in range(len(batch.source)):
            length = int(batch.lengths[row])
            state = transducer.encode(batch.source[row : row + 1, :length], batch.lengths[row : row + 1])
            for t in range(int(batch.target_lengths[row])):
                output, state = transducer.decoder(transducer.target_table(batch.said[row : row + 1, t]), state)
                assert torch.allclose(transducer.readout(output)[0], logits[row, t], atol=1e-5)


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_teacher_forcing_runs_as_machine_code(tmp_path: Path, attention: str) -> None:
    transducer, batch = first_batch(write_pairs(tmp_path / "x.tsv"), attention=attention, dropout=0.1, layers=2)
    transducer.train()
    start = transducer.encode(batch.source, batch.lengths)
    found = throughtime.explain(
        transducer.decoder, transducer.target_table(batch.said), batch.target_lengths, initial_state=start
    )
    assert "backend: native" in str(found)


def test_what_a_run_leaves(pair_run: Path) -> None:
    results = json.loads((pair_run / "results.json").read_text())
    assert results["test_exact_match"] > 0.2
    assert 0 < results["test_token_errors"] < 0.5
    known = json.loads((pair_run / "data.json").read_text())
    assert known["source"]["tokens"] == ["<end>", "<unknown>", "a", "b", "c", "d"]
    assert (known["source"]["end"], known["source"]["unknown"], known["longest"]) == (0, 1, 6)
    page = (pair_run / "report.html").read_text()
    assert page.count("<svg") == 2
    for words in ("Where it looks", "Where it was wrong", "exactly right", "BLEU"):
        assert words in page


def test_evaluate_agrees_with_fit(pair_run: Path, capsys: Out) -> None:
    """And the share of rows that are right by teacher forcing is the exact match of greedy decoding."""
    evaluate(pair_run, None, "validation", None)
    out = capsys.readouterr().out
    with (pair_run / "metrics.csv").open() as file:
        best = max(
            csv.DictReader(file), key=lambda row: (float(row["validation_exact_match"]), -float(row["validation_loss"]))
        )
    assert f"exact match {100 * float(best['validation_exact_match']):.2f} %" in out
    assert f"loss {float(best['validation_loss']):.4f}" in out
    assert f"weights of epoch {best['epoch']}" in out
    evaluate(pair_run, None, "test", None)
    results = json.loads((pair_run / "results.json").read_text())
    out = capsys.readouterr().out
    assert f"exact match {100 * results['test_exact_match']:.2f} %" in out
    assert f"BLEU {results['test_bleu']:.2f}" in out
    assert "greedy" in out


def test_predict_writes_what_evaluate_counts(pair_run: Path, tmp_path: Path) -> None:
    predict(pair_run, None, "test", tmp_path / "said.parquet", None)
    rows = pq.read_table(tmp_path / "said.parquet").to_pylist()
    results = json.loads((pair_run / "results.json").read_text())
    assert np.mean([row["prediction"] == row["target"] for row in rows]) == pytest.approx(results["test_exact_match"])
    assert np.mean([row["edit_distance"] for row in rows]) == pytest.approx(results["test_edit_distance"])
    assert all(row["target"] == row["source"][::-1] for row in rows)
    assert all(row["exact"] == (row["edit_distance"] == 0) for row in rows)
    said, targets = ([row[name] for row in rows] for name in ("prediction", "target"))
    assert corpus_bleu(said, [targets], tokenize="char").score == pytest.approx(results["test_bleu"])


def test_predict_from_sources_alone(pair_run: Path, tmp_path: Path, capsys: Out) -> None:
    (tmp_path / "new.tsv").write_text("ab\nabcd\nz\n")
    predict(pair_run, f"tsv:{tmp_path}/new.tsv", "all", tmp_path / "said.csv", 3)
    with (tmp_path / "said.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["ab", "abcd", "z"]
    assert list(rows[0]) == ["row", "source", "prediction", "score"]
    assert "exact match" not in capsys.readouterr().out


def test_a_beam_finds_what_is_at_least_as_probable(pair_run: Path, tmp_path: Path, capsys: Out) -> None:
    evaluate(pair_run, None, "test", 4)
    assert "beam of 4" in capsys.readouterr().out
    totals = []
    for beam in (1, 4):
        predict(pair_run, None, "test", tmp_path / "said.parquet", beam)
        totals.append(sum(pq.read_table(tmp_path / "said.parquet").column("score").to_pylist()))
    assert totals[1] >= totals[0]


def test_scores_are_those_of_teacher_forcing(pair_run: Path, tmp_path: Path) -> None:
    predict(pair_run, None, "test", tmp_path / "said.parquet", None)
    rows = pq.read_table(tmp_path / "said.parquet").to_pylist()
    directory = RunDirectory(pair_run)
    options, encoding = directory.read_options(), directory.read_encoding()
    model, _ = directory.read_model()
    test: Pairs = read_pairs(options.data, encoding).test
    right = [place for place, row in enumerate(rows) if row["exact"]]
    batch = pad_pairs(test, np.asarray(right), np.asarray(right))
    with torch.no_grad():
        logits = model(batch)
    for k, place in enumerate(right):
        length = int(batch.target_lengths[k])
        loss = cross_entropy(logits[k, :length], batch.targets[k, :length], reduction="sum")
        assert -float(loss) == pytest.approx(rows[place]["score"], abs=1e-3)


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = transducer(write_pairs(tmp_path / "x.tsv"), {"dropout": 0.2, "backend": "portable"}, checkpoint_every=2)
    check_killed_and_resumed(options, tmp_path, monkeypatch, batch=2)


def test_words_and_a_limited_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(commands, "write_report", lambda *_: None)
    (tmp_path / "x.tsv").write_text("one two\tdeux un\ntwo\tdeux\n" * 20)
    options = transducer(tmp_path / "x.tsv", {"backend": "portable"}, {"tokens": "words", "vocabulary": 1}, epochs=1)
    fit(options, tmp_path / "run", False)
    assert "1-2 words to 1-2, vocabularies of 3 and 3" in capsys.readouterr().out
    predict(tmp_path / "run", None, "all", tmp_path / "said.parquet", None)
    targets = set(pq.read_table(tmp_path / "said.parquet").column("target").to_pylist())
    assert targets == {"deux un", "deux"}, "also what the model does not know"


def test_in_bfloat16_and_without_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(commands, "write_report", lambda *_: None)
    path = write_pairs(tmp_path / "x.tsv")
    options = transducer(path, {"backend": "portable"}, {"validation": 0.0}, precision="bf16-mixed", epochs=1)
    fit(options, tmp_path / "run", False)
    assert "test exact match" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "match", "detail"),
    [
        ({"units": 7}, "shared by the two directions", "got 7"),
        ({"dropout": 1.0}, "is a share that leaves something", "1.0"),
        ({"cell": "LSTMCell", "cell_options": {"num_proj": 3}}, "does not fit together so", "LSTMCell"),
        ({"cell": "functions:cell", "layers": 2}, "cells that can be stacked", "functions:cell"),
    ],
)
def test_models_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict, match: str, detail: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "functions.py").write_text(
        "def cell(units):\n    return Cell(units)\n"
        "class Cell:\n    def __init__(self, units):\n        self.state_size = units\n"
        "    def __call__(self, x, h):\n        return h, h + x[:, :1]\n"
    )
    with pytest.raises(FitError, match=match) as caught:
        first_batch(write_pairs(tmp_path / "x.tsv"), **model)
    assert detail in str(caught.value)


@pytest.mark.parametrize(
    ("said", "target", "edits"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance(said: str, target: str, edits: int) -> None:
    assert edit_distance(said, target) == edit_distance(target, said) == edits


def test_a_run_of_another_task(pair_run: Path, small_run: Path, capsys: Out) -> None:
    assert run_command(["generate", str(pair_run)]) == 1
    assert "holds a run of the task 'transduce'" in capsys.readouterr().err
    with pytest.raises(FitError, match="holds a run with another configuration") as caught:
        fit(transducer(Path("x.tsv")), small_run, resume=True)
    assert "task: there 'classify', asked for 'transduce'\nChoose" in str(caught.value)
    with pytest.raises(FitError, match="--beam is for runs of the task"):
        evaluate(small_run, None, "test", 2)
