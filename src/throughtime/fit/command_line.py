"""Words on the command line, or in a config file -> options -> a command. Errors come out as one message."""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, Namespace  # pyright: ignore[reportPrivateImportUsage]
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser

from throughtime import BackendError
from throughtime.fit.commands import evaluate, fit, predict
from throughtime.fit.errors import FitError
from throughtime.fit.options import DataOptions, ModelOptions, Options, TrainingOptions

__all__ = ["run_command"]

GROUPS = (DataOptions, ModelOptions, TrainingOptions)
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def run_command(words: Sequence[str]) -> int:
    """The exit code: 0, or 1 where a person has to put something right (2 where the words do not parse)."""
    parser = _make_parser()
    config = parser.parse_args([_with_underscores(word) for word in words])
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


def _make_parser() -> LightningArgumentParser:
    parser = LightningArgumentParser(
        prog="throughtime", description="Train a recurrent classifier of sequences, measure it, use it."
    )
    commands = parser.add_subcommands(required=True)
    commands.add_subcommand("fit", _fit_parser(), help="train, and write a report")
    commands.add_subcommand("evaluate", _evaluate_parser(), help="measure the model of a run")
    commands.add_subcommand("predict", _predict_parser(), help="write what the model of a run says of sequences")
    return parser


def _fit_parser() -> LightningArgumentParser:
    parser = LightningArgumentParser(
        description="Train a recurrent classifier. The book's: throughtime fit --data idx:DIRECTORY --cell "
        "BasicRNNCell --units 150. With several processes: torchrun --nproc-per-node=2 -m throughtime fit ..."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Read options from a YAML file.")
    for group in GROUPS:
        parser.add_class_arguments(group)
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
        description="Write a row for each sequence: its number, the predicted class, the probabilities."
    )
    _add_run_and_data(parser, part="all")
    parser.add_argument("--out", type=Path, required=True, help="The file to write, .parquet or .csv.")
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


def _options(config: Namespace) -> Options:
    return Options.from_flat({name: _plain(value) for name, value in vars(config).items()})


def _plain(value: Any) -> Any:
    """jsonargparse's restricted numbers are subclasses of int and float, which YAML and JSON writers refuse."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return int(value) if isinstance(value, int) else float(value)


_COMMANDS = {
    "fit": lambda config: fit(_options(config), config.run, config.resume),
    "evaluate": lambda config: evaluate(config.run, config.data, config.part),
    "predict": lambda config: predict(config.run, config.data, config.part, config.out),
}
