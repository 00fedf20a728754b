"""Running text: windows over it, the state carried between them, and what a trained model writes."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import throughtime
from fit.made_pairs import check_killed_and_resumed, language_model
from throughtime.fit import commands
from throughtime.fit.command_line import run_command
from throughtime.fit.commands import evaluate, fit, generate, predict
from throughtime.fit.errors import FitError
from throughtime.fit.options import TextOptions
from throughtime.fit.tasks.language_model.continuation import Continuation
from throughtime.fit.tasks.language_model.model import build_language_model
from throughtime.fit.tasks.language_model.text import TextPart, Windows, absolute_source, read_text_parts, source_name
from throughtime.fit.tasks.language_model.training import LanguageModelTraining, perplexity

Out = pytest.CaptureFixture[str]
SENTENCE = "the cat sat on the mat. "


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that knows its sentence."""
    directory = tmp_path_factory.mktemp("text")
    (directory / "cat.txt").write_text(SENTENCE * 60)
    options = language_model(directory / "cat.txt", {"units": 32}, epochs=3, learning_rate=0.02)
    fit(options, directory / "run", False)
    return directory / "run"


@pytest.mark.parametrize(("count", "rows", "window"), [(50, 4, 8), (51, 4, 7), (9, 4, 4), (3, 4, 8)])
def test_windows_hold_every_token_once_in_its_order(count: int, rows: int, window: int) -> None:
    windows = Windows(TextPart(np.arange(count + 1)), rows, window)
    seen: list[list[int]] = [[] for _ in range(windows.rows)]
    for k, batch in enumerate(windows):
        assert batch.first == (k == 0)
        assert batch.units == int(batch.lengths.sum())
        assert batch.inputs.shape[1] <= window
        for row, length in enumerate(batch.lengths.tolist()):
            seen[row] += batch.inputs[row, :length].tolist()
            assert torch.equal(batch.inputs[row, :length] + 1, batch.targets[row, :length])
    assert [token for row in seen for token in row] == list(range(count))
    assert len({len(row) for row in seen[:-1]}) <= 1


def test_rows_are_not_short() -> None:
    assert Windows(TextPart(np.arange(100)), 32, 8, least=40).rows == 2
    assert Windows(TextPart(np.arange(10)), 32, 8, least=40).rows == 1


def test_processes_share_the_rows() -> None:
    part = TextPart(np.arange(60))
    for whole, *shares in zip(Windows(part, 5, 4), *(Windows(part, 5, 4, rank=rank, world=2) for rank in (0, 1))):
        assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs[[0, 2, 4, 1, 3]])
        assert {share.units for share in shares} == {whole.units}


def test_parts_of_a_text(tmp_path: Path) -> None:
    """The files in the order of their names, an end before, between and after them."""
    (tmp_path / "b.txt").write_text("dcd")
    (tmp_path / "a.txt").write_text("abcabca")
    (tmp_path / "notes.md").write_text("zzz")
    data = read_text_parts(TextOptions(data=f"text:{tmp_path}", validation=0.2, test=0.2))
    assert data.encoding.vocabulary.tokens == ("<end>", "<unknown>", "a", "b", "c")
    assert data.train.ids.tolist() == [0, 2, 3, 4, 2, 3, 4]
    assert data.validation.ids.tolist() == [2, 0, 1]
    assert data.test.ids.tolist() == [4, 1, 0]
    assert (len(data.train), source_name(f"text:{tmp_path}/a.txt")) == (6, "a")
    assert absolute_source("text:a.txt") == f"text:{Path.cwd()}/a.txt"


def gradients(module: LanguageModelTraining, windows: Windows) -> Iterator[list[torch.Tensor]]:
    for batch in windows:
        loss, _ = module.measure(batch, "train")
        yield list(torch.autograd.grad(loss, list(module.model.parameters())))


def test_the_state_is_carried_and_gradients_are_cut(tmp_path: Path) -> None:
    """As the library's `truncated` over the same rows."""
    (tmp_path / "x.txt").write_text(SENTENCE * 8)
    options = language_model(tmp_path / "x.txt", {"layers": 2, "cell": "LSTMCell"})
    data = read_text_parts(options.data)
    model = build_language_model(options.model, data.encoding, seed=0)
    windows = Windows(data.train, rows=3, window=8)
    found = gradients(LanguageModelTraining(model, options.training), windows)
    steps = windows.inputs.shape[1]
    inputs, targets = torch.from_numpy(windows.inputs), torch.from_numpy(windows.targets)
    lengths = torch.from_numpy(windows.lengths)
    parts = throughtime.truncated(model.rnn.cell, model.table(inputs).detach(), window=8, sequence_length=lengths)
    for part, found_gradients in zip(parts, found, strict=True):
        weights = throughtime.sequence_mask(lengths, steps, torch.float32)[:, part.start : part.stop]
        logits, wanted = model.readout(part.outputs), targets[:, part.start : part.stop]
        loss = throughtime.sequence_loss(logits, wanted, weights) * weights.sum()
        rest = [p for p in model.parameters() if p is not model.table.weight]
        for expected, gradient in zip(torch.autograd.grad(loss, rest), found_gradients[1:], strict=True):
            assert torch.allclose(gradient, expected, atol=1e-4, rtol=1e-4)


def test_windows_change_nothing_of_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(SENTENCE * 8)
    options = language_model(tmp_path / "x.txt")
    data = read_text_parts(options.data)
    model = build_language_model(options.model, data.encoding, seed=0)
    losses = []
    for window in (5, 1000):
        module = LanguageModelTraining(model, options.training)
        with torch.no_grad():
            losses.append(sum(float(module.measure(batch, "test")[0]) for batch in Windows(data.train, 2, window)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_a_run_leaves(text_run: Path) -> None:
    results = json.loads((text_run / "results.json").read_text())
    assert results["test_perplexity"] == pytest.approx(math.exp(results["test_loss"]))
    assert results["test_perplexity"] < 1.5
    page = (text_run / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "Where a text surprises it" in page
    assert page.count("<span style") > 50
    with (text_run / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["validation_perplexity"]) == pytest.approx(math.exp(float(row["validation_loss"])))


def test_evaluate_and_predict_agree_with_fit(text_run: Path, tmp_path: Path, capsys: Out) -> None:
    results = json.loads((text_run / "results.json").read_text())
    evaluate(text_run, None, "test", None)
    assert f"perplexity {results['test_perplexity']:.2f}   loss {results['test_loss']:.4f}" in capsys.readouterr().out
    predict(text_run, None, "test", tmp_path / "said.parquet", None)
    table = pq.read_table(tmp_path / "said.parquet")
    assert np.mean(table.column("bits").to_pylist()) == pytest.approx(results["test_bits"])
    assert "".join(table.column("token").to_pylist()).removesuffix("<end>") in SENTENCE * 60
    (tmp_path / "other.txt").write_text("mat cat ")
    evaluate(text_run, f"text:{tmp_path}/other.txt", "all", None)
    assert "over 9 characters" in capsys.readouterr().out


def test_it_writes_what_it_has_read(text_run: Path, capsys: Out) -> None:
    words = ["generate", str(text_run), "--prompt", "the cat", "--max-steps", "41", "--temperature", "0"]
    assert run_command(words) == 0
    assert capsys.readouterr().out == (SENTENCE * 2) + "\n"


def test_a_seed_gives_the_same_text_again(text_run: Path, capsys: Out) -> None:
    said = []
    for seed in (1, 1, 2):
        generate(text_run, Continuation(max_steps=60, temperature=5.0, seed=seed, top_k=9, top_p=0.99))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert "<unknown>" not in "".join(said)


def test_words(tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "write_report", lambda *_: None)
    (tmp_path / "x.txt").write_text(SENTENCE * 12)
    options = language_model(tmp_path / "x.txt", {"backend": "portable"}, {"tokens": "words"}, epochs=1)
    fit(options, tmp_path / "run", False)
    generate(tmp_path / "run", Continuation(prompt="the  cat", max_steps=3, temperature=0.0))
    words = capsys.readouterr().out.splitlines()[-1].split()
    assert words[:2] == ["the", "cat"]
    assert set(words) <= set(SENTENCE.split())


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within an epoch: the carried state comes back too."""
    (tmp_path / "x.txt").write_text(SENTENCE * 20)
    model = {"dropout": 0.2, "layers": 2, "cell": "LSTMCell", "backend": "portable"}
    options = language_model(tmp_path / "x.txt", model, checkpoint_every=2)
    check_killed_and_resumed(options, tmp_path, monkeypatch, batch=4)


@pytest.mark.parametrize(
    ("source", "options", "match", "detail"),
    [
        ("text:x.txt", {}, "cannot find the text file", "x.txt"),
        ("text:.", {}, "holds no .txt file", "the directory ."),
        ("x.txt", {}, "--data of running text is", "'x.txt'"),
        ("text:y.md", {"test": 0.6, "validation": 0.4}, "are shares of the text", "got 0.4 and 0.6"),
        ("text:y.md", {}, "leave fewer than two", "5 characters leave fewer than two for the validation part"),
    ],
)
def test_texts_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, options: dict, match: str, detail: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("y.md").write_text("abc")
    with pytest.raises(FitError, match=match) as caught:
        read_text_parts(TextOptions(data=source, **options))
    assert detail in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "match", "detail"),
    [
        (Continuation(prompt="the dog", max_steps=1), "the model has never read", "'d', 'g'"),
        (Continuation(top_p=2.0), "--temperature, --top-k, --top-p", "2.0"),
    ],
)
def test_continuations_that_are_refused(text_run: Path, wanted: Continuation, match: str, detail: str) -> None:
    with pytest.raises(FitError, match=match) as caught:
        generate(text_run, wanted)
    assert detail in str(caught.value)


def test_only_a_language_model_continues(small_run: Path) -> None:
    with pytest.raises(FitError, match="text is continued by a language model") as caught:
        generate(small_run, Continuation())
    assert "'classify'" in str(caught.value)


def test_a_loss_beyond_all_numbers() -> None:
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == math.inf
