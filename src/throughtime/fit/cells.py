"""The name of a cell and its options -> cells, each with its parameters made."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import throughtime
from throughtime import cells
from throughtime.fit.errors import FitError

__all__ = ["CellMaker", "check_dropout"]

Backend = Literal["auto", "native", "portable"]


@dataclass(frozen=True)
class CellMaker:
    """Makes cells of one kind: a cell of throughtime by name, or any class as "module:Class"."""

    name: str
    make: Callable[..., Any]
    options: Mapping[str, Any]

    @staticmethod
    def of(name: str, options: Mapping[str, Any]) -> "CellMaker":
        return CellMaker(name, _find(name), options)

    def __call__(self, units: int, width: int) -> Any:
        """A cell of so many units for inputs of this width."""
        signature = inspect.signature(self.make)
        given = dict(self.options)
        if "input_size" in signature.parameters:
            given.setdefault("input_size", width)
        names = [name for name in signature.parameters if name in ("num_units", "hidden_size", "units")]
        arguments = () if names else (units,)
        if names:
            given[names[0]] = units
        try:
            signature.bind(*arguments, **given)
        except TypeError as error:
            raise FitError(f"--cell_options: {self.name} takes {signature}: {error}.") from error
        try:
            return self.make(*arguments, **given)
        except (TypeError, ValueError) as error:
            raise FitError(f"--cell: {self.name} refuses its arguments: {error}") from error

    def stack(self, units: int, width: int, layers: int, dropout: float, backend: Backend) -> tuple[Any, int]:
        """One cell of so many layers, with dropout in between, and the width of its output."""
        made = []
        for layer in range(layers):
            cell = self(units, width)
            width = self.try_out(cell, width, backend)[0].shape[2]
            between = dropout and layer < layers - 1
            made.append(throughtime.DropoutWrapper(cell, output_keep_prob=1 - dropout) if between else cell)
        if layers == 1:
            return made[0], width
        try:
            return throughtime.MultiRNNCell(made), width
        except TypeError as error:
            raise FitError(f"--layers: {self.name} does not make cells that can be stacked: {error}") from error

    def try_out(self, cell: Any, width: int, backend: Backend) -> tuple[Tensor, Any]:
        """(outputs [1, 1, H], state) of one step on zeros, which lets a cell make its parameters.

        Compiled only where nothing else will do, so that a refusal comes before any work.
        """
        with torch.no_grad():
            outputs, state = throughtime.dynamic_rnn(
                cell, torch.zeros(1, 1, width), backend="native" if backend == "native" else "portable"
            )
        if not isinstance(outputs, Tensor) or outputs.dim() != 3:
            raise FitError(f"--cell: {self.name} must return one tensor [batch, width] at each step.")
        return outputs, state


def _find(name: str) -> Callable[..., Any]:
    if ":" not in name:
        known = [word for word in cells.__all__ if word.endswith("Cell") and word not in ("RNNCell", "MultiRNNCell")]
        if name not in known:
            raise FitError(
                f"--cell: throughtime has no cell {name!r}. It has {', '.join(sorted(known))}; a cell of your own is "
                f"named 'module:Class', and --layers stacks them."
            )
        return getattr(cells, name)
    module_name, _, class_name = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise
        raise FitError(f"--cell: there is no module {module_name!r}, neither installed nor in {here}.") from error
    made = getattr(module, class_name, None)
    if not callable(made):
        raise FitError(f"--cell: the module {module_name} has no class {class_name!r}.")
    return made


def check_dropout(share: float) -> None:
    if share >= 1:
        raise FitError(f"--dropout is a share that leaves something, below 1, got {share}.")
