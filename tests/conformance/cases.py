"""A descriptor, lengths, a seed -> one case, and its results: by the definition, and by a backend in a layout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from conformance.definition import Leaf, plain_loop
from conformance.descriptors import TOLERANCES, Descriptor, Subject
from conformance.layouts import LAYOUTS
from throughtime import dynamic_rnn
from throughtime._nested import Nested, leaves_with_paths, map_leaves

__all__ = [
    "Case",
    "Result",
    "assert_close",
    "assert_same",
    "by_definition",
    "by_library",
    "draw_case",
    "poisoned",
    "pull_back",
]


@dataclass(frozen=True)
class Case:
    """One call. inputs: [B, T, ...]; initial_state, reset_state: [B, ...] or None; reset: bool [B, T] or None."""

    descriptor: Descriptor
    dtype: torch.dtype
    subject: Subject
    inputs: Nested
    lengths: list[int]
    steps: int
    initial_state: Nested = None
    reset: Tensor | None = None
    reset_state: Nested = None
    cotangents: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        given = ", ".join(name for name in ("initial_state", "reset", "reset_state") if getattr(self, name) is not None)
        return f"Case({self.subject.cell}, {self.inputs}, lengths={self.lengths}, steps={self.steps}, given: {given})"

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def real_steps(self) -> Tensor:
        """bool [B, T]: inside the row's length."""
        return torch.arange(self.steps) < torch.tensor(self.lengths, dtype=torch.int64).unsqueeze(1)

    def sources(self) -> dict[str, Tensor]:
        """Every tensor that a gradient goes to, by name."""
        given = {"inputs": self.inputs, "initial_state": self.initial_state, "reset_state": self.reset_state}
        named = [pair for name, value in given.items() if value is not None for pair in leaves_with_paths(value, name)]
        trainable = {f"cell.{name}": tensor for name, tensor in self.subject.trainable.items()}
        return {name: leaf for name, leaf in named if leaf.requires_grad} | trainable


@dataclass(frozen=True)
class Result:
    """outputs: padded, [B, T, ...]. gradients: of the case's cotangents, to each of its sources by name."""

    outputs: Nested
    state: Nested
    gradients: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        values = [*leaves_with_paths(self.outputs, "outputs"), *leaves_with_paths(self.state, "state")]
        return dict(values) | {f"gradient of {name}": g for name, g in self.gradients.items()}


def draw_case(
    descriptor: Descriptor,
    lengths: list[int],
    steps: int | None = None,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
    initial: bool = False,
    resets: float = 0.0,
    reset_state: bool = False,
    fresh: bool = False,
) -> Case:
    """A case with random values.

    resets: the share of steps with a reset; 0 for none.
    fresh: a cell of the case's own, to be changed; by default all cases of a descriptor share one, compiled once.
    """
    torch.manual_seed(0)
    subject = descriptor.make(dtype) if fresh or descriptor.name == "random" else _shared(descriptor.make, dtype)
    torch.manual_seed(seed)
    steps = max(lengths, default=0) if steps is None else steps
    batch = len(lengths)

    def draw(spec: Nested, *axes: int) -> Nested:
        return map_leaves(lambda leaf: _draw_leaf(leaf, axes, dtype), spec)

    case = Case(descriptor, dtype, subject, draw(descriptor.inputs, batch, steps), list(lengths), steps)
    if initial or not descriptor.knows_start:
        case = replace(case, initial_state=draw(descriptor.state, batch))
    if resets:
        case = replace(case, reset=torch.rand(batch, steps) < resets)
        if reset_state:
            case = replace(case, reset_state=draw(descriptor.state, batch))
    cotangents = [
        *leaves_with_paths(draw(descriptor.output, batch, steps), "outputs"),
        *leaves_with_paths(draw(descriptor.state, batch), "state"),
    ]
    return replace(case, cotangents={name: value.detach() for name, value in cotangents})


@cache
def _shared(make: Callable[[torch.dtype], Subject], dtype: torch.dtype) -> Subject:
    return make(dtype)


def poisoned(case: Case, value: float) -> Case:
    """The same case with `value` in the padding of the inputs; a token id there is out of the vocabulary."""
    padding = ~case.real_steps

    def poison(leaf: Tensor) -> Tensor:
        fresh = leaf.detach().clone()
        fresh[padding] = value if leaf.is_floating_point() else 10**6
        return fresh.requires_grad_(leaf.requires_grad)

    return replace(case, inputs=map_leaves(poison, case.inputs))


def by_definition(case: Case) -> Result:
    cell, descriptor = case.subject.cell, case.descriptor
    start = descriptor.make_start(cell, case.batch, case.dtype)
    declare = getattr(cell, "row_consts", None)
    outputs, state = plain_loop(
        descriptor.step_of(cell),
        descriptor.output,
        case.dtype,
        case.inputs,
        case.lengths,
        case.steps,
        start if case.initial_state is None else case.initial_state,
        declare(case.batch, case.dtype, torch.device("cpu")) if declare else (),
        case.reset,
        start if case.reset_state is None else case.reset_state,
    )
    return Result(outputs, state, _gradients(case, outputs, state))


def by_library(case: Case, backend: str, layout: str = "padded", **options: Any) -> Result:
    """The case through `dynamic_rnn`, in and out of a layout; gradients go to the case's own padded tensors."""
    chosen = LAYOUTS[layout]
    reset = None if case.reset is None else chosen.encode(case.reset, case.lengths)
    outputs, state = dynamic_rnn(
        case.subject.cell,
        map_leaves(lambda x: chosen.encode(x, case.lengths), case.inputs),
        case.lengths if chosen.needs_lengths else None,
        case.initial_state,
        **{"reset": reset, "reset_state": case.reset_state, "backend": backend} | chosen.options | options,
    )
    padded = map_leaves(lambda y: chosen.decode(y, case.lengths, case.steps), outputs)
    return Result(padded, state, _gradients(case, padded, state))


def assert_same(got: Result, want: Result, dtype: torch.dtype) -> None:
    """Outputs, state and every gradient, by name."""
    got_by_name, want_by_name = got.named(), want.named()
    assert got_by_name.keys() == want_by_name.keys()
    for name, expected in want_by_name.items():
        assert_close(name, got_by_name[name], expected, dtype)


def assert_close(name: str, got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    assert got.dtype == want.dtype, f"{name}: dtype {got.dtype}, expected {want.dtype}"
    if not want.numel():
        return
    if not want.is_floating_point():
        assert torch.equal(got, want), name
        return
    largest = max(float(want.detach().abs().max()), 0.1)
    difference = float((got - want).detach().abs().max())
    # A gradient goes through every step twice; TensorFlow's own golden gradients are compared as loosely.
    allowed = TOLERANCES[dtype] * (10 if name.startswith("gradient") else 1) * largest
    assert difference <= allowed, f"{name}: differs by {difference:.3g}, largest {largest:.3g}"


def _draw_leaf(leaf: Leaf, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if leaf.below is not None:
        return torch.randint(leaf.below, (*axes, *leaf.shape))
    return torch.randn(*axes, *leaf.shape, dtype=dtype).requires_grad_()


def _gradients(case: Case, outputs: Nested, state: Nested) -> dict[str, Tensor]:
    results = [*leaves_with_paths(outputs, "outputs"), *leaves_with_paths(state, "state")]
    live = [(leaf, case.cotangents[name]) for name, leaf in results if leaf.requires_grad]
    return pull_back(live, case.sources())


def pull_back(live: Sequence[tuple[Tensor, Tensor]], sources: dict[str, Tensor]) -> dict[str, Tensor]:
    """(a result, its cotangent) -> the gradient of each source; zeros for one that no result depends on."""
    if not live:
        return {name: torch.zeros_like(tensor) for name, tensor in sources.items()}
    roots, cotangents = zip(*live)
    found = torch.autograd.grad(roots, list(sources.values()), cotangents, allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(sources.items(), found)
    }
