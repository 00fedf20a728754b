"""The example in every docstring of a cell runs as it stands."""

import doctest
import importlib
import pkgutil

import pytest

from throughtime import cells

MODULES = [f"throughtime.cells.{found.name}" for found in pkgutil.iter_modules(cells.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", cells.__all__)
def test_every_cell_has_an_example(name: str) -> None:
    if name != "LSTMStateTuple":
        assert ">>>" in (getattr(cells, name).__doc__ or "")


def test_exports_are_sorted() -> None:
    assert cells.__all__ == sorted(cells.__all__, key=lambda name: (not name.isupper(), name))
