"""The command line: what is asked for in which words, and how errors come out."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from throughtime import __main__ as front
from throughtime.fit import command_line
from throughtime.fit.command_line import run_command
from throughtime.fit.options import (
    LanguageModelOptions,
    Options,
    PairOptions,
    TrainingOptions,
    TransducerOptions,
)
from throughtime.fit.tasks.language_model.continuation import Continuation

Out = pytest.CaptureFixture[str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the commands would have been called with."""
    calls: list[tuple] = []
    for name in ("fit", "evaluate", "predict", "generate"):
        monkeypatch.setattr(command_line, name, lambda *arguments: calls.append(arguments))
    return calls


def test_the_books_classifier_is_one_line(asked: list[tuple]) -> None:
    assert run_command(["fit", "--data", "idx:mnist", "--cell", "BasicRNNCell", "--units", "150"]) == 0
    ((options, run, resume),) = asked
    assert isinstance(options, Options)
    assert (options.data.data, options.model.cell, options.model.units) == ("idx:mnist", "BasicRNNCell", 150)
    assert (options.training.batch, options.training.learning_rate, options.training.clip) == (150, 0.001, 0)
    assert (run, resume) == (None, False)


def test_dashes_and_underscores_are_the_same(asked: list[tuple]) -> None:
    run_command(["fit", "--learning-rate", "0.1", "--split-seed=7", "--cell_options.use_peepholes", "true"])
    options = asked[0][0]
    assert options.training.learning_rate == 0.1
    assert options.data.split_seed == 7
    assert options.model.cell_options == {"use_peepholes": True}


def test_a_config_file_and_words_that_change_it(asked: list[tuple], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"cell": "GRUCell", "units": 7, "cell_options": {"a": 1}}))
    run_command(["fit", "--config", str(tmp_path / "c.yaml"), "--units", "8"])
    model = asked[0][0].model
    assert (model.cell, model.units, model.cell_options) == ("GRUCell", 8, {"a": 1})


def test_evaluate_and_predict(asked: list[tuple]) -> None:
    run_command(["evaluate", "runs/x"])
    run_command(["predict", "runs/x", "--data", "parquet:new.parquet", "--part", "test", "--out", "said.csv"])
    assert asked == [
        (Path("runs/x"), None, "test", None),
        (Path("runs/x"), "parquet:new.parquet", "test", Path("said.csv"), None),
    ]


def test_a_task_has_options_and_defaults_of_its_own(asked: list[tuple]) -> None:
    run_command(["fit", "--task", "transduce", "--data", "tsv:x.tsv", "--attention", "bahdanau"])
    run_command(["fit", "--window", "16", "--task=language-model", "--data", "text:x.txt", "--epochs", "3"])
    (pairs, *_), (text, *_) = asked
    assert (pairs.task, pairs.data, pairs.model.attention) == ("transduce", PairOptions("tsv:x.tsv"), "bahdanau")
    assert (pairs.training.epochs, pairs.training.batch, pairs.training.schedule) == (10, 100, "cosine")
    assert (text.task, text.data.window, text.model) == ("language-model", 16, LanguageModelOptions())
    assert text.training.epochs == 3


def test_a_config_file_names_its_task(asked: list[tuple], tmp_path: Path) -> None:
    options = Options(PairOptions("tsv:x.tsv"), TransducerOptions(units=6), TrainingOptions(epochs=4), "transduce")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(options.flat()))
    run_command(["fit", "--config", str(tmp_path / "c.yaml"), "--units", "8"])
    assert asked[0][0] == replace(options, model=TransducerOptions(units=8))


@pytest.mark.parametrize("prompt", ["It was", "12", "a: b", "null", "[", "'"])
def test_generate(asked: list[tuple], prompt: str) -> None:
    run_command(["generate", "runs/x", "--prompt", prompt, "--max-steps", "9", "--top-k=3", "--seed", "1"])
    assert asked == [(Path("runs/x"), Continuation(prompt, max_steps=9, top_k=3, seed=1))]


@pytest.mark.parametrize(
    "command",
    ["fit", "fit --task transduce", "fit --task language-model", "evaluate", "predict", "generate"],
)
def test_help_tells_of_every_option(command: str, capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command([*command.split(), "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    options = [line for line in out.splitlines() if line.startswith("  --") and "--print_config" not in line]
    assert len(options) >= {"fit": 24, "evaluate": 3, "predict": 4, "generate": 6}[command.split()[0]]
    after = " ".join(out.split())
    for line in options:
        name = line.split()[0]
        assert len(after.rsplit(f" {name} ", 1)[-1].split("--")[0].split()) > 3, f"{name} is not explained"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit --units 0", "units"),
        ("fit --epochs many", "epochs"),
        ("fit --no-such-option 1", "no_such_option"),
        ("fit --precision 8-bit", "precision"),
        ("fit --task sing", "language-model"),
        ("fit --task transduce", "data"),
        ("fit --task transduce --data tsv:x --window 3", "window"),
        ("fit --config /nowhere.yaml", "nowhere.yaml"),
        ("generate runs/x --temperature -1", "temperature"),
        ("evaluate", "run"),
        ("predict runs/x", "out"),
        ("dance", "dance"),
    ],
)
def test_words_that_do_not_parse(words: str, said: str, capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(words.split())
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit --data idx:/nowhere", "is not a directory"),
        ("fit --data parquet:/nowhere.parquet", "there is no file"),
        ("fit --cell NoSuchCell", "BasicRNNCell"),
        ("fit --task transduce --data tsv:/nowhere.tsv", "cannot find the text file"),
        ("fit --task language-model --data text:/nowhere.txt", "cannot find the text file"),
        ("generate /nowhere", "is not the directory of a run"),
        ("evaluate /nowhere", "is not the directory of a run"),
        ("predict /nowhere --out x.txt", "--out must end in"),
    ],
)
def test_bad_input_is_one_message(words: str, said: str, capsys: Out, tmp_path: Path) -> None:
    run = ["--run", str(tmp_path / "run")] if words.startswith("fit") else []
    assert run_command([*words.split(), *run]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("throughtime: ")
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run").exists(), "an error comes before any work"


def test_a_disk_that_fills_while_training(tmp_path: Path, capsys: Out) -> None:
    """TensorBoard's file, or the checkpoint: whichever is full first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code = run_command(["fit", "--units", "64", "--epochs", "2", "--run", str(tmp_path / "run")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert code == 1
    assert "cannot write" in err or "the disk is full" in err
    assert not list((tmp_path / "run").glob(".*"))
    assert run_command(["fit", "--units", "64", "--epochs", "2", "--run", str(tmp_path / "run"), "--resume"]) == 0


def test_an_error_of_the_disk_that_is_not_ours(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    def fail(errno: int) -> int:
        def fit(*_: object) -> None:
            raise OSError(errno, "as the system says")

        monkeypatch.setattr(command_line, "fit", fit)
        return run_command(["fit"])

    assert fail(28) == 1
    assert "the disk is full" in capsys.readouterr().err
    with pytest.raises(OSError, match="as the system says"):
        fail(5)


def test_without_the_packages_of_fit(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    """As where only the library is installed: no package of the extra can be imported."""
    blocker = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pytorch_lightning', 'jsonargparse', 'rich', 'pyarrow', 'sklearn'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import runpy\n"
        "sys.argv = ['throughtime', 'fit']\n"
        "runpy.run_module('throughtime', run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", blocker], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "pip install 'throughtime[fit]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_entry_point(monkeypatch: pytest.MonkeyPatch, asked: list[tuple]) -> None:
    monkeypatch.setattr(sys, "argv", ["throughtime", "evaluate", "runs/x"])
    assert front.main() == 0
    assert len(asked) == 1
