"""A source of random choices -> a cell of any operators that the native backend has, a call of it, and its results.

`Random(seed)` and hypothesis' `randoms()` are both sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from conformance.definition import Leaf, real, whole
from loop.native.random_steps import MOST_NUMBERS, Instruction, StepWriter
from throughtime import dynamic_rnn
from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves
from throughtime._types import Backend

__all__ = ["Call", "RandomCell", "check", "random_call", "results"]

MOST_ROWS, MOST_STEPS = 9, 6
TOLERANCES = {torch.float64: 1e-7, torch.float32: 2e-4}  # PyTorch rounds the slope of a hardsigmoid to float32


@dataclass(frozen=True)
class Recipe:
    """xs, state, row_consts: nested features. ys, next_state: nested numbers of values."""

    xs: Nested
    state: Nested
    row_consts: Nested
    instructions: tuple[Instruction, ...]
    ys: Nested
    next_state: Nested

    def __str__(self) -> str:
        count = len(leaves((self.xs, self.state, self.row_consts)))
        lines = [f"xs: {self.xs}", f"state: {self.state}", f"row consts: {self.row_consts}"]
        lines += [f"{count + i} = {instruction}" for i, instruction in enumerate(self.instructions)]
        return "\n".join([*lines, f"ys: {self.ys}", f"next state: {self.next_state}"])


class RandomCell(nn.Module):
    """Runs a recipe. Its tensors are parameters, buffers, or known to a closure only."""

    def __init__(self, recipe: Recipe, tensors: Sequence[Tensor], kinds: Sequence[str]) -> None:
        super().__init__()
        self.recipe, self.kinds = recipe, list(kinds)
        enclosed = [self._keep(f"t{i}", t.detach().clone(), kind) for i, (t, kind) in enumerate(zip(tensors, kinds))]
        self.read = lambda: enclosed
        if leaves(recipe.row_consts):
            self.row_consts = self._row_consts

    def _keep(self, name: str, tensor: Tensor, kind: str) -> Tensor:
        if kind == "parameter":
            tensor = nn.Parameter(tensor)
            self.register_parameter(name, tensor)
        elif kind == "buffer":
            self.register_buffer(name, tensor)
        return tensor.requires_grad_(kind in ("parameter", "enclosed", "memory"))

    def to_dtype(self, dtype: torch.dtype) -> "RandomCell":
        return RandomCell(self.recipe, [t.to(dtype) for t in self.read()], self.kinds)

    @property
    def trainable(self) -> dict[str, Tensor]:
        return {f"t{i} ({kind})": t for i, (t, kind) in enumerate(zip(self.read(), self.kinds)) if t.requires_grad}

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
        return map_leaves(lambda leaf: torch.zeros(batch_size, *leaf.shape, dtype=dtype), self.recipe.state)

    def _row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Nested:
        return tuple(t[:batch_size] for t, kind in zip(self.read(), self.kinds) if kind == "memory")

    def forward(self, x: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Nested, Nested]:
        tensors = self.read()
        values = [*leaves(x), *leaves(state), *leaves(row_consts)]
        for instruction in self.recipe.instructions:
            values.append(instruction.function(tensors, *(values[i] for i in instruction.operands)))
        ys, next_state = (map_leaves(lambda i: values[i], part) for part in (self.recipe.ys, self.recipe.next_state))
        return ys, next_state


@dataclass(frozen=True)
class Call:
    """A cell (in float64) and what it is called with; values are drawn from `seed`."""

    cell: RandomCell
    lengths: list[int]
    steps: int
    given: frozenset[str]
    """Of "initial_state", "reset", "reset_state"."""
    wanted: str
    """Whose cotangents are not zero: "all", "outputs" or "state"."""
    chunk: int
    seed: int

    def __repr__(self) -> str:
        return f"{self.cell.recipe}\n{self.lengths} of {self.steps}, {sorted(self.given)}, {self.wanted}, {self.chunk}"


def random_call(random: Random) -> Call:
    cell = _random_cell(random)
    steps = random.randint(1, MOST_STEPS)
    lengths = [random.choice([steps, random.randint(0, steps)]) for _ in range(random.randint(1, MOST_ROWS))]
    given = {name for name in ("initial_state", "reset", "reset_state") if random.random() < 0.4}
    if all(leaf.below is not None for leaf in leaves(cell.recipe.xs)):
        given.add("initial_state")  # whole numbers do not say of which type the state is
    if "reset" not in given:
        given.discard("reset_state")
    wanted = random.choice(["all", "all", "outputs", "state"])
    return Call(cell, lengths, steps, frozenset(given), wanted, random.choice([1, 2, 32]), random.randrange(1000))


def _random_cell(random: Random) -> RandomCell:
    xs, state = _nest(random, 2, _input), _nest(random, 3, _state)
    row_consts = tuple(real(3, random.choice([2, 4])) for _ in range(random.choice([0, 0, 0, 1])))
    inputs = leaves((xs, state, row_consts))
    writer = StepWriter(random, [_trial(leaf) for leaf in inputs])
    for leaf in row_consts:
        writer.remember(MOST_ROWS, *leaf.shape)
    for i, leaf in enumerate(leaves(xs)):
        if leaf.below is not None:
            writer.embed(i, leaf.below)
    writer.grow(random.randint(2, 14))
    first = len(leaves(xs))
    states = range(first, first + len(leaves(state)))
    moved = iter([_next(writer, random, i, states) for i in states])
    next_state = map_leaves(lambda _: next(moved), state)
    ys = _nest(random, 3, lambda _: writer.pick())
    return RandomCell(
        Recipe(xs, state, row_consts, tuple(writer.instructions), ys, next_state), writer.tensors, writer.kinds
    )


def _input(random: Random) -> Leaf:
    return random.choice(
        [real(4), real(1), real(3), real(9), real(2, 3), real(), whole(MOST_NUMBERS), whole(MOST_NUMBERS, 2)]
    )


def _state(random: Random) -> Leaf:
    return random.choice([real(4), real(4), real(3), real(8), real(1), real(2, 3), real(2, 2, 2), real()])


def _nest(random: Random, most: int, make: Callable[[Random], Any]) -> Nested:
    flat = [make(random) for _ in range(random.randint(1, most))]
    forms = ["tuple", "list", "dict", "deep"] + ["alone"] * 4 * (len(flat) == 1)
    form = random.choice(forms)
    if form == "alone":
        return flat[0]
    if form == "dict":
        return dict(zip("abc", flat))
    if form == "deep":
        return {"first": flat[0], "others": tuple(flat[1:])}
    return tuple(flat) if form == "tuple" else flat


def _trial(leaf: Leaf) -> Tensor:
    if leaf.below is not None:
        return torch.zeros(3, *leaf.shape, dtype=torch.int64)
    return torch.linspace(-1, 1, 3 * torch.Size(leaf.shape).numel(), dtype=torch.float64).reshape(3, *leaf.shape)


def _next(writer: StepWriter, random: Random, state: int, states: Sequence[int]) -> int:
    """What a state becomes: itself, another state, any value of its shape, or a mixture of values made to its shape."""
    form = random.choice(["itself", "other state", "value", "value", "mixed", "mixed", "mixed", "mixed"])
    shape = writer.shape(state)
    if form == "itself":
        return state
    fitting = [i for i in states if writer.shape(i) == shape]
    if form == "other state":
        return random.choice(fitting)
    if form == "value" and (i := writer.pick(lambda s: s == shape)) is not None:
        return i
    return writer.mix(state)


# --- a call of it


def results(call: Call, backend: Backend, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs, states and gradients by name."""
    torch.manual_seed(call.seed)
    cell, batch = call.cell.to_dtype(dtype), len(call.lengths)
    recipe = cell.recipe

    def draw(spec: Nested, *axes: int) -> Nested:
        return map_leaves(lambda leaf: _draw(leaf, axes, dtype), spec)

    inputs, start, back = draw(recipe.xs, batch, call.steps), draw(recipe.state, batch), draw(recipe.state, batch)
    reset = torch.rand(batch, call.steps) < 0.3
    outputs, state = dynamic_rnn(
        cell,
        inputs,
        call.lengths,
        start if "initial_state" in call.given else None,
        parallel_iterations=call.chunk,
        reset=reset if "reset" in call.given else None,
        reset_state=back if "reset_state" in call.given else None,
        backend=backend,
    )
    made = dict(leaves_with_paths(outputs, "outputs") + leaves_with_paths(state, "state"))
    sources = dict(leaves_with_paths(inputs, "inputs"))
    sources |= dict(leaves_with_paths(start, "initial") + leaves_with_paths(back, "reset_state")) | cell.trainable
    return made | _gradients(call, made, sources)


def _gradients(call: Call, made: dict[str, Tensor], sources: dict[str, Tensor]) -> dict[str, Tensor]:
    cotangents = {name: torch.randn(value.shape, dtype=torch.float64).to(value.dtype) for name, value in made.items()}
    live = [n for n, v in made.items() if v.requires_grad and (call.wanted == "all" or n.startswith(call.wanted))]
    sources = {name: source for name, source in sources.items() if source.requires_grad}
    if not live:
        return {f"gradient of {name}": torch.zeros_like(source) for name, source in sources.items()}
    roots, given = [made[n] for n in live], [cotangents[n] for n in live]
    found = torch.autograd.grad(roots, list(sources.values()), given, allow_unused=True)
    return {
        f"gradient of {name}": torch.zeros_like(source) if gradient is None else gradient
        for (name, source), gradient in zip(sources.items(), found)
    }


def _draw(leaf: Leaf, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if leaf.below is not None:
        return torch.randint(leaf.below, (*axes, *leaf.shape))
    return torch.randn(*axes, *leaf.shape, dtype=torch.float64).to(dtype).requires_grad_()


def check(call: Call, dtype: torch.dtype) -> None:
    """The native backend gives what the plain loop gives in float64."""
    want, got = results(call, "portable", torch.float64), results(call, "native", dtype)
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        if not expected.numel():
            continue
        largest = max(float(expected.detach().abs().max()), 1.0)
        difference = float((got[name] - expected).detach().abs().max())
        assert difference <= TOLERANCES[dtype] * largest, f"{name}: off by {difference:.3g}, largest {largest:.3g}"
