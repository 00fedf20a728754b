"""The example in every docstring of a cell runs as it stands."""

import doctest
import importlib
import pkgutil

import pytest

from throughtime import cells
from throughtime.cells import contrib

MODULES = [found.name for found in pkgutil.walk_packages(cells.__path__, "throughtime.cells.")]
EXAMPLES = [*(getattr(cells, name) for name in cells.__all__), *(getattr(contrib, name) for name in contrib.__all__)]
NO_EXAMPLE = {"LSTMStateTuple", "Conv1DLSTMCell", "Conv2DLSTMCell", "Conv3DLSTMCell"}


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("cell", EXAMPLES, ids=lambda cell: cell.__name__)
def test_every_cell_has_an_example(cell) -> None:
    assert (">>>" in cell.__doc__) == (cell.__name__ not in NO_EXAMPLE)
