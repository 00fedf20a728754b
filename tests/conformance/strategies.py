"""Hypothesis strategies: cells at random, lengths, shapes, resets and layouts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from conformance.cases import Case, draw_case
from conformance.definition import Leaf, real, whole
from conformance.descriptors import DESCRIPTORS, MIXES_DTYPES, Descriptor, Subject
from conformance.layouts import LAYOUTS
from throughtime._nested import Nested, leaves, map_leaves

__all__ = ["calls", "descriptors", "random_cells"]

LEAF_RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda mixed, old: torch.tanh(mixed),
    "leak": lambda mixed, old: 0.8 * old + torch.sin(mixed),
    "gate": lambda mixed, old: torch.sigmoid(mixed) * old + 0.1 * mixed,
    "clip": lambda mixed, old: (mixed + old).clamp(-1, 1),
    "switch": lambda mixed, old: torch.where(mixed > 0, mixed.tanh(), -old),
    "keep": lambda mixed, old: old,
    "softmax": lambda mixed, old: torch.softmax(mixed.unsqueeze(1), -1).squeeze(1) + 0.5 * old,
}


@dataclass(frozen=True)
class Recipe:
    """One random cell. rules: how each leaf of the state moves, from an affine map of input and state."""

    inputs: Nested
    state: Nested
    rules: tuple[str, ...]
    output_rule: str

    @property
    def output(self) -> Nested:
        floating = [leaf for leaf in leaves(self.state) if leaf.below is None]
        if self.output_rule == "readout":
            return real(2)
        first = floating[0] if floating else real(2)
        return {"first": first, "all": (real(2), real())} if self.output_rule == "nested" else first


class RandomCell(nn.Module):
    """Whole-number leaves count; a real one moves by its rule, driven by all that is real."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        floating = [leaf for leaf in leaves(recipe.state) if leaf.below is None]
        width = sum(_size(leaf) for leaf in [*leaves(recipe.inputs), *floating])
        self.maps = nn.ModuleList(nn.Linear(width, _size(leaf)) for leaf in floating)
        self.read = nn.Linear(width, 2)

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
        return map_leaves(lambda leaf: torch.zeros(batch_size, *leaf.shape, dtype=leaf.dtype(dtype)), self.recipe.state)

    def forward(self, x: Nested, state: Nested) -> tuple[Nested, Nested]:
        dtype = self.read.weight.dtype
        floating = [leaf for leaf in leaves(state) if leaf.is_floating_point()]
        seen = torch.cat(
            [leaf.to(dtype).reshape(leaf.shape[0], leaf.shape[1:].numel()) for leaf in [*leaves(x), *floating]], -1
        )
        moved = iter(zip(self.maps, self.recipe.rules, strict=False))

        def move(old: Tensor) -> Tensor:
            if not old.is_floating_point():
                return old + 1
            affine, rule = next(moved)
            return LEAF_RULES[rule](affine(seen).reshape(old.shape), old)

        next_state = map_leaves(move, state)
        return self._output(seen, next_state), next_state

    def _output(self, seen: Tensor, state: Nested) -> Nested:
        floating = [leaf for leaf in leaves(state) if leaf.is_floating_point()]
        readout = torch.relu(self.read(seen))
        if self.recipe.output_rule == "readout":
            return readout
        first = floating[0] if floating else readout
        return {"first": first, "all": (readout, readout.sum(-1))} if self.recipe.output_rule == "nested" else first


def _size(leaf: Leaf) -> int:
    return int(torch.Size(leaf.shape).numel())


_REAL = st.sampled_from([real(1), real(3), real(2, 2), real()])
_ANY = st.one_of(_REAL, _REAL, _REAL, st.just(whole(4)))


def _nests(leaf: st.SearchStrategy[Leaf]) -> st.SearchStrategy[Nested]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=2),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2),
        ),
        max_leaves=4,
    )


@st.composite
def random_cells(draw: st.DrawFn, leaf: st.SearchStrategy[Leaf] = _ANY) -> Descriptor:
    state = draw(_nests(leaf))
    recipe = Recipe(
        draw(_nests(leaf)),
        state,
        tuple(draw(st.sampled_from(sorted(LEAF_RULES))) for _ in leaves(state)),
        draw(st.sampled_from(["first", "readout", "nested"])),
    )

    def make(dtype: torch.dtype) -> Subject:
        cell = RandomCell(recipe).to(dtype)
        return Subject(cell, dict(cell.named_parameters()))

    return Descriptor("random", make, recipe.inputs, state, recipe.output, _step)


def _step(cell: Any, x: Nested, state: Nested, row_consts: Nested) -> tuple[Nested, Nested]:
    return cell(x, state)


def descriptors(backend: str, source: str) -> st.SearchStrategy[Descriptor]:
    """Cells that the backend runs: those of the "table", or cells at "random"."""
    if source == "table":
        return st.sampled_from([descriptor for descriptor in DESCRIPTORS if backend not in descriptor.refused_by])
    return random_cells(_ANY if backend in MIXES_DTYPES else _REAL)


@st.composite
def calls(draw: st.DrawFn, cells: st.SearchStrategy[Descriptor]) -> tuple[Case, str]:
    """A case, and a layout that takes it."""
    steps = draw(st.integers(0, 6))
    lengths = draw(st.lists(st.integers(0, steps), max_size=5))
    extra = draw(st.integers(0, 2))
    case = draw_case(
        draw(cells),
        lengths,
        steps + extra,
        seed=draw(st.integers(0, 1000)),
        initial=draw(st.booleans()),
        resets=draw(st.sampled_from([0.0, 0.2, 1.0])),
        reset_state=draw(st.booleans()),
    )
    fitting = [name for name, layout in LAYOUTS.items() if layout.takes(case.inputs, case.lengths)]
    if not case.lengths:
        fitting.remove("jagged")  # PyTorch has no jagged tensor without rows
    return case, draw(st.sampled_from(fitting))
