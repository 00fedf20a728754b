"""What one task adds to a run: its data, its model, its loss, its measures, its page. All the rest is shared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from throughtime.fit.data.parts import Data
from throughtime.fit.options import Options
from throughtime.fit.report.page import Finished
from throughtime.fit.training import Training

__all__ = ["Task"]


class Task(ABC):
    """The stations of a run, in their order. `encoding` is what a model must know about its data: a dataclass.

    A part of the data is anything with a length.
    """

    name: str

    @abstractmethod
    def source_name(self, source: str) -> str:
        """A short name for run directories and titles."""

    @abstractmethod
    def absolute_source(self, source: str) -> str:
        """The same source, readable from every directory."""

    @abstractmethod
    def read_data(self, options: Options, encoding: Any = None) -> Data:
        """The source, split and encoded; the encoding is learned from the training part unless it is known."""

    @abstractmethod
    def read_all(self, options: Options, encoding: Any, need_answers: bool) -> Any:
        """The whole source as one part."""

    @abstractmethod
    def read_encoding(self, known: Mapping[str, Any]) -> Any:
        """What JSON made of an encoding -> the encoding."""

    @abstractmethod
    def build_model(self, options: Options, encoding: Any) -> nn.Module:
        """The same options and encoding give the same first weights."""

    @abstractmethod
    def make_training(self, model: Any, options: Options, encoding: Any) -> Training: ...

    @abstractmethod
    def make_batches(self, part: Any, options: Options, seed: int | None = None, rank: int = 0, world: int = 1) -> Any:
        """Without a seed, in an order for measuring."""

    @abstractmethod
    def introduce(self, options: Options, data: Data) -> dict[str, str]:
        """The first lines that a person sees: "data", "" for a second line of it, "model"."""

    @abstractmethod
    def collect(self, part: Any, passes: Any, options: Options, encoding: Any) -> Any:
        """What `Training.predict_step` returned for each batch -> what the model says of the part."""

    @abstractmethod
    def results(self, said: Any) -> dict[str, Any]:
        """The measures of the test part, for results.json."""

    @abstractmethod
    def headline(self, results: Mapping[str, Any]) -> tuple[str, str]:
        """The one figure that matters, and a remark on it."""

    @abstractmethod
    def tell(self, console: Console, said: Any, in_detail: bool) -> None:
        """Print the measures."""

    @abstractmethod
    def write(self, path: Path, said: Any) -> None:
        """One row a sequence, to a Parquet or CSV file."""

    @abstractmethod
    def report(self, run: Finished) -> str:
        """The page about a run."""
