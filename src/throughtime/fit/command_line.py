"""Words on the command line, or in a config file -> options -> a command. Errors come out as one message."""

import errno
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, Namespace  # pyright: ignore[reportPrivateImportUsage]
from jsonargparse.typing import PositiveInt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser

from throughtime import BackendError
from throughtime.fit.commands import evaluate, fit, generate, predict
from throughtime.fit.errors import FitError
from throughtime.fit.options import DEFAULTS, GROUPS, Options
from throughtime.fit.tasks.language_model.continuation import Continuation

__all__ = ["run_command"]

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
TASK = "classify"  # what fit does where nothing else is said
BEAM: Any = PositiveInt | None  # pyright: ignore[reportOperatorIssue]


def run_command(words: Sequence[str]) -> int:
    """The exit code: 0, or 1 where a person has to put something right (2 where the words do not parse)."""
    words = [_with_underscores(word) for word in words]
    config = _make_parser(_task_of(words)).parse_args(words)
    try:
        _COMMANDS[config.subcommand](config[config.subcommand])
    except (FitError, BackendError, MisconfigurationException) as error:
        return _tell(str(error))
    except OSError as error:
        if error.errno not in FULL:
            raise
        return _tell(f"the disk is full: {error}. Make room, then go on with --resume.")
    return 0


def _tell(message: str) -> int:
    print(f"throughtime: {message}", file=sys.stderr)
    return 1


def _with_underscores(word: str) -> str:
    """--learning-rate means --learning_rate."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _task_of(words: Sequence[str]) -> str:
    """Which options there are hangs on the task, so it is looked for before the words are parsed."""
    said: dict[str, str | None] = {"--config": None, "--task": None}
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name in said:
            said[name] = value if equals else following
    task = said["--task"] or _task_in(said["--config"])
    return task if task in GROUPS else TASK


def _task_in(config: str | None) -> str | None:
    """Where the file cannot be read the parser says so."""
    if config is None or not Path(config).is_file():
        return None
    try:
        values = yaml.safe_load(Path(config).read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return values.get("task") if isinstance(values, dict) else None


def _make_parser(task: str) -> LightningArgumentParser:
    parser = LightningArgumentParser(
        prog="throughtime", description="Train a recurrent model of sequences, measure it, use it."
    )
    commands = parser.add_subcommands(required=True)
    commands.add_subcommand("fit", _fit_parser(task), help="train, and write a report")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="measure the model of a run")
    commands.add_subcommand("predict", _predict_parser(), help="write what the model of a run says of sequences")
    commands.add_subcommand("generate", _generate_parser(), help="continue a text with the language model of a run")
    return parser


DESCRIPTIONS = {
    "classify": "Train a recurrent classifier. The book's: throughtime fit --data idx:DIRECTORY --cell BasicRNNCell "
    "--units 150.",
    "transduce": "Train an encoder and an attention decoder that turn one sequence into another: "
    "throughtime fit --task transduce --data tsv:FILE.",
    "language-model": "Train a model of running text: throughtime fit --task language-model --data text:FILE.",
}


def _fit_parser(task: str) -> LightningArgumentParser:
    parser = LightningArgumentParser(
        description=f"{DESCRIPTIONS[task]} With several processes: torchrun --nproc-per-node=2 -m throughtime fit ..."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Read options from a YAML file.")
    parser.add_argument(
        "--task",
        type=Literal["classify", "transduce", "language-model"],
        default=task,
        help="What is learned: a class for each sequence, a sequence for each sequence, or how a text goes on. Each "
        "has options of its own, which --help shows when it is named.",
    )
    for group in GROUPS[task]:
        parser.add_class_arguments(group)
    parser.set_defaults(DEFAULTS[task])
    parser.add_argument(
        "--run",
        "--run_directory",
        type=Path | None,
        help="The directory of the run. Write --run-directory under torchrun, which takes --run for one of its own "
        "options. (default: runs/DATA-CELL-UNITS)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on with the run in that directory from its last checkpoint, with the same result as if it had never "
        "stopped; start it if it is not there.",
    )
    return parser


def _evaluate_parser() -> LightningArgumentParser:
    parser = LightningArgumentParser(description="Measure the model of a run.")
    _add_run_and_data(parser, part="test")
    return parser


def _predict_parser() -> LightningArgumentParser:
    parser = LightningArgumentParser(
        description="Write a row for each sequence: its number, and the predicted class with the probabilities, or the "
        "predicted sequence with its score."
    )
    _add_run_and_data(parser, part="all")
    parser.add_argument("--out", type=Path, required=True, help="The file to write, .parquet or .csv.")
    return parser


def _generate_parser() -> LightningArgumentParser:
    parser = LightningArgumentParser(description="Continue a text with the language model of a run.")
    parser.add_argument("run", type=Path, help="The directory of a run of the task language-model.")
    parser.add_class_arguments(Continuation)
    return parser


def _add_run_and_data(parser: LightningArgumentParser, part: str) -> None:
    parser.add_argument("run", type=Path, help="The directory of a run.")
    parser.add_argument("--data", type=str | None, help="Other data, as in fit. (default: the data of the run)")
    parser.add_argument(
        "--part",
        type=Literal["train", "validation", "test", "all"],
        default=part,
        help="Which part of the data.",
    )
    parser.add_argument(
        "--beam",
        type=BEAM,
        help="Sequences for sequences: the width of the beam search, 1 for the most probable token at each step. "
        "(default: as in fit)",
    )


def _options(config: Namespace) -> Options:
    return Options.from_flat({name: _plain(value) for name, value in vars(config).items()})


def _continuation(config: Namespace) -> Continuation:
    return Continuation(**{f.name: _plain(config[f.name]) for f in fields(Continuation)})


def _plain(value: Any) -> Any:
    """jsonargparse's restricted numbers are subclasses of int and float, which YAML and JSON writers refuse."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return int(value) if isinstance(value, int) else float(value)


_COMMANDS = {
    "fit": lambda config: fit(_options(config), config.run, config.resume),
    "evaluate": lambda config: evaluate(config.run, config.data, config.part, config.beam),
    "predict": lambda config: predict(config.run, config.data, config.part, config.out, config.beam),
    "generate": lambda config: generate(config.run, _continuation(config)),
}
