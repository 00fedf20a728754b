"""Steps of few operators: the native backend gives what the plain loop gives, outputs and all gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from throughtime import dynamic_rnn
from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves
from throughtime._types import Backend
from throughtime.cells.contrib import ConvLSTMCell

ROWS, STEPS, UNITS, CLASSES = 5, 6, 6, 7
LENGTHS = [6, 3, 0, 5, 1]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4}
both_types = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d).removeprefix("torch."))

Step = Callable[..., tuple[Nested, Nested]]


class Cell:
    """Calls the step with x, h, the row consts if there are any, and the tensors."""

    def __init__(self, step: Step, tensors: list[Tensor], memory: list[Tensor]) -> None:
        self.step, self.tensors, self.memory = step, tensors, memory

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(self.memory)

    def __call__(self, x: Nested, h: Tensor, row_consts: tuple[Tensor, ...] = ()) -> tuple[Nested, Nested]:
        return self.step(x, h, *row_consts, *self.tensors)


def results(
    step: Step, tensors: list[Tensor], xs: Nested, memory: Sequence[Tensor], backend: Backend, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Outputs, states and gradients by name."""

    def typed(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).requires_grad_() if tensor.is_floating_point() else tensor

    cell = Cell(step, *([typed(t.clone()) for t in given] for given in (tensors, memory)))
    inputs, start = map_leaves(typed, xs), typed(numbers(ROWS, UNITS))
    outputs, state = dynamic_rnn(cell, inputs, LENGTHS, start, backend=backend, parallel_iterations=2)
    made = dict(leaves_with_paths(outputs, "outputs") + leaves_with_paths(state, "state"))
    named = {"tensor": cell.tensors, "memory": cell.memory, "input": leaves(inputs), "start": [start]}
    sources = {f"{kind} {i}": t for kind, given in named.items() for i, t in enumerate(given) if t.requires_grad}
    roots = [value for value in made.values() if value.requires_grad]
    cotangents = [numbers(*root.shape).to(dtype) for root in roots]
    found = torch.autograd.grad(roots, list(sources.values()), cotangents, allow_unused=True, materialize_grads=True)
    return made | {f"gradient of {name}": gradient for name, gradient in zip(sources, found)}


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def ids(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(below))


def check(
    step: Step, tensors: list[Tensor], xs: Nested, dtype: torch.dtype, memory: list[Tensor] | None = None
) -> None:
    want = results(step, tensors, xs, memory or [], "portable", torch.float64)
    got = results(step, tensors, xs, memory or [], "native", dtype)
    assert got.keys() == want.keys()
    for name, expected in want.items():
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(got[name].to(expected.dtype), expected, rtol=tolerance, atol=tolerance, msg=name)


# --- look-ups


def losses(x: Any, h: Tensor, w: Tensor, weight: Tensor) -> tuple[Nested, Tensor]:
    real, label, pair = x
    h = torch.tanh(h + real)
    logits = h @ w
    found = {
        "of classes": F.cross_entropy(logits, label, reduction="none"),
        "smoothed": F.cross_entropy(logits, label, weight.detach().abs(), reduction="none", label_smoothing=0.1),
        "of likelihoods": F.nll_loss(logits, label.clamp(min=0), reduction="none", ignore_index=3),
        "of an image": F.cross_entropy(logits.view(-1, CLASSES, 1).expand(-1, -1, 2) + 1, pair, reduction="none"),
    }
    return found, h


@both_types
def test_losses_of_class_ids(dtype: torch.dtype) -> None:
    label = ids(CLASSES, ROWS, STEPS)
    label[0, 2] = -100
    label[2] = 1 << 40  # of the row without steps
    inputs = (numbers(ROWS, STEPS, UNITS), label, ids(CLASSES, ROWS, STEPS, 2))

    check(losses, [numbers(UNITS, CLASSES), numbers(CLASSES)], inputs, dtype)


def lookups(x: Any, h: Tensor, w: Tensor) -> tuple[Nested, Tensor]:
    real, one, four, table = x
    h = torch.tanh(h + real)
    wide, square = h @ w, h.unsqueeze(-1) * (h @ w).unsqueeze(1)
    found = {
        "one": wide.gather(1, one.unsqueeze(1)),
        "four": torch.take_along_dim(wide, four, 1),
        "of the last axis": square.gather(2, table),
        "of the first axis": square.gather(1, table.transpose(1, 2)[:, :, :3]),
        "own": wide[torch.arange(len(wide)), one - CLASSES],
        "the same for all": wide[:, torch.tensor([3, 3, 0, -1])],
        "windows": wide.unfold(1, 3, 2),
        "whole numbers": four.gather(1, four % 4),
        "of the state": wide.gather(1, wide.argmax(1, keepdim=True)),
    }
    return found, h


def writes(x: Any, h: Tensor, w: Tensor) -> tuple[Nested, Tensor]:
    real, _, four, _ = x
    h = torch.tanh(h + real)
    wide = h @ w
    found = {
        "put": wide.scatter(1, torch.tensor([5, 1, 2, 3]) + 0 * four, h[:, :4]),
        "put a number": wide.scatter(1, four, -1.0),
        "added": wide.scatter_add(1, four, h[:, :4]),
        "the same for all": wide.index_copy(1, torch.tensor([3, 1]), h[:, :2]),
        "added for all": wide.index_add(1, torch.tensor([3, 1, 3]), h[:, :3]),
    }
    return found, h


def running(x: Any, h: Tensor, w: Tensor) -> tuple[Nested, Tensor]:
    real, _, four, _ = x
    h = torch.tanh(h + real)
    square = h.unsqueeze(-1) * (h @ w).unsqueeze(1)
    found = {
        "sums": (h @ w).cumsum(1),
        "sums of columns": square.cumsum(1),
        "sums of one": h[:, :1].cumsum(1),
        "sums of whole numbers": four.cumsum(1),
        "products": (1.1 + torch.sigmoid(h @ w)).cumprod(1),
        "logarithms of sums": square.logcumsumexp(2),
        "largest": square.cummax(1),
        "smallest": (h @ w).cummin(1),
        "largest whole number": four.cummax(1),
        "some truth": (h > 0).cummax(1),
    }
    return found, h


def in_order(x: Any, h: Tensor, w: Tensor) -> tuple[Nested, Tensor]:
    real, _, four, _ = x
    h = torch.tanh(h + real)
    wide, square = h @ w, h.unsqueeze(-1) * (h @ w).unsqueeze(1)
    found = {
        "sorted": wide.sort(1),
        "sorted back": square.sort(1, descending=True),
        "whole numbers": four.sort(1)[0],
        "truths": torch.sort(wide > 0, dim=1, stable=True),
        "places": wide.gather(1, wide.argsort(1)[:, 1:3]),
        "largest": wide.topk(2, 1),
        "largest of many": (2 * wide).repeat(1, 40).add(torch.arange(280, dtype=h.dtype) / 100).topk(8, 1),
        "most": square.topk(5, 2),
        "smallest": wide.topk(3, 1, largest=False),
        "largest whole number": four.topk(1, 1)[0],
        "of a rank": square.kthvalue(3, 2, keepdim=True),
        "middle": (wide.median(1), h.median(1, keepdim=True)),
        "middle of whole numbers": four.median(1)[0],
    }
    return found, h


def of_matrices(x: Any, h: Tensor, w: Tensor) -> tuple[Nested, Tensor]:
    real, _, _, table = x
    h = torch.tanh(h + real)
    square = h.unsqueeze(-1) * (h @ w).unsqueeze(1)
    room = square.unsqueeze(2) * h[:, :2].view(-1, 1, 2, 1)
    found = {
        "diagonals": [square.diagonal(offset, 1, 2) for offset in (0, -3, CLASSES - 1)],
        "turned": room.diagonal(1, 3, 1),
        "none": square.diagonal(CLASSES, 1, 2),
        "traces": torch.einsum("bii->b", square[:, :, :UNITS]),
        "whole numbers": table.diagonal(0, 1, 2),
        "as a matrix": torch.diag_embed(h, 1)[:, :UNITS] + torch.diagonal_scatter(square, h[:, 1:], -1, 1, 2),
        "lower": square.tril(),
        "upper": (room.triu(1), table.triu(-2)),
        "of all rows": h @ w.tril(-1),
    }
    return found, h


@both_types
@pytest.mark.parametrize("step", [lookups, writes, running, in_order, of_matrices], ids=lambda step: step.__name__)
def test_entries_by_number(step: Step, dtype: torch.dtype) -> None:
    whole = (ids(CLASSES, ROWS, STEPS), ids(CLASSES, ROWS, STEPS, 4), ids(UNITS, ROWS, STEPS, UNITS, CLASSES))
    check(step, [numbers(UNITS, CLASSES)], (numbers(ROWS, STEPS, UNITS), *whole), dtype)


def test_a_running_sum_keeps_infinities_behind_it() -> None:
    x = numbers(1, 2, 9)
    x[0, 1, 4], x[0, 1, 6] = float("inf"), float("nan")
    x[0, 0, :3] = -float("inf")
    steps = (lambda x: x.cumsum(1), lambda x: x.logcumsumexp(1), lambda x: (*x.cummax(1), *x.cummin(1)))
    found, want = (
        dynamic_rnn(lambda x, h: ([f(x) for f in steps], h), x, None, x[:, 0], backend=backend)[0]
        for backend in ("native", "portable")
    )
    for got, expected in zip(leaves(found), leaves(want), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("order", ["sort", "sort back", "topk", "smallest", "median"])
def test_infinities_and_nan_have_their_place_in_an_order(order: str) -> None:
    """NaN is the largest. What is taken already is not taken again where only minus infinities are left."""
    x = torch.tensor([0.0, -0.0, 1.0, -1.0] + [float("inf"), -float("inf"), float("nan")] * 2, dtype=torch.float64)
    x = torch.stack([x, x.flip(0), x.nan_to_num(0.5), torch.full_like(x, -float("inf"))]).unsqueeze(1)
    steps: dict[str, Callable[[Tensor], Any]] = {
        "sort": lambda x: x.sort(dim=1, stable=True),
        "sort back": lambda x: x.sort(dim=1, stable=True, descending=True),
        "topk": lambda x: x.topk(5, 1)[0],
        "smallest": lambda x: x.topk(7, 1, largest=False)[0],
        "median": lambda x: x.median(1)[0],
    }
    found, want = (
        dynamic_rnn(lambda x, h: (steps[order](x), h), x, None, x[:, 0], backend=backend)[0]
        for backend in ("native", "portable")
    )
    for got, expected in zip(leaves(found), leaves(want), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
    if order == "topk":
        places, _ = dynamic_rnn(lambda x, h: (x.topk(5, 1)[1], h), x, None, x[:, 0], backend="native")
        assert places[3, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("wrong", [-1, CLASSES])
@pytest.mark.parametrize("look_up", ["embedding", "gather", "cross_entropy"])
def test_an_id_that_names_no_entry(look_up: str, wrong: int) -> None:
    def step(x: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        if look_up == "embedding":
            return F.embedding(x[1] + 0, table), h
        if look_up == "gather":
            return x[0].gather(1, x[1].unsqueeze(1)), h
        return F.cross_entropy(x[0], x[1], reduction="none"), h

    table = numbers(CLASSES, 2)
    number = ids(CLASSES, ROWS, STEPS)
    inputs, start = (numbers(ROWS, STEPS, CLASSES), number), numbers(ROWS, 1)
    number[:, 3:] = wrong
    dynamic_rnn(step, inputs, [3, 0, 1, 2, 3], start, backend="native")
    with pytest.raises(IndexError, match=f"an id that looks up one of 7 entries lies between 0 and 6, got .*{wrong}"):
        dynamic_rnn(step, inputs, [6, 0, 1, 2, 3], start, backend="native")


# --- states and numbers


def test_a_state_that_another_state_becomes() -> None:
    """The backward pass knows it by the other's trace, and computes its exponential again."""

    def step(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        old, new = state
        following = torch.tanh(x + old * new.exp())
        return following, (new, following)

    x, start = numbers(ROWS, STEPS, UNITS).requires_grad_(), (numbers(ROWS, UNITS), numbers(ROWS, UNITS) / 2)
    given = [x, *(s.requires_grad_() for s in start)]
    found = []
    for backend in ("native", "portable"):
        outputs, state = dynamic_rnn(step, x, LENGTHS, start, backend=backend, parallel_iterations=2)
        found.append([outputs, *state, *torch.autograd.grad(outputs.square().sum() + state[0].sum(), given)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("length", [2, 0])
def test_a_step_without_a_gradient(length: int) -> None:
    """What a row without a step was given is what it has at the end; no other row's gradient comes to anything."""
    x, start = numbers(2, 3, UNITS).requires_grad_(), numbers(2, UNITS).requires_grad_()
    _, state = dynamic_rnn(lambda x, h: (x.round(), x.detach()), x, [length, 3], start, backend="native")
    gradients = torch.autograd.grad(state.sum(), [x, start], allow_unused=True, materialize_grads=True)
    assert not gradients[0].any()
    assert torch.equal(gradients[1], torch.tensor([[float(length == 0)], [0.0]]).expand(2, UNITS))


def of_numbers(x: Tensor, h: Tensor, w: Tensor) -> tuple[Nested, Tensor]:
    """Products with one number, and gradients that are cut."""
    h = torch.tanh(h + x)
    square = h.unsqueeze(-1) * (h @ w).unsqueeze(1)
    found = {
        "left": torch.full_like(square, 0.5).transpose(1, 2) @ square,
        "right": square @ torch.ones_like(square).transpose(1, 2),
        "cut": torch.trunc(torch.einsum("bi,bi->b", h, h)),
        "cut products": torch.trunc(square.transpose(1, 2) @ square),
    }
    return found, h


def test_products_of_one_number() -> None:
    check(of_numbers, [numbers(UNITS, CLASSES)], numbers(ROWS, STEPS, UNITS), torch.float64)


# --- functions

FUNCTIONS = ["sinh", "cosh", "asinh", "acosh", "atanh", "exp2", "asin", "acos"]


@both_types
def test_functions_made_of_others(dtype: torch.dtype) -> None:
    """Within a few units in the last place, from the smallest numbers to those that overflow."""
    most = torch.finfo(dtype).max
    ends = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), most, -most]).double()
    sizes = torch.logspace(-30, 4, 999, dtype=torch.float64)
    x = torch.cat([ends, sizes, -sizes, torch.linspace(-90, 90, 999), 1 + sizes, 1 - sizes]).to(dtype).expand(1, 1, -1)
    names = [getattr(torch, name) for name in FUNCTIONS]
    found, _ = dynamic_rnn(lambda x, h: ([f(x) for f in names], h), x, None, x[:, 0], backend="native")
    for name, got in zip(FUNCTIONS, found):
        want = getattr(torch, name)(x.double()).to(dtype)
        torch.testing.assert_close(got, want, rtol=16 * torch.finfo(dtype).eps, atol=0, equal_nan=True, msg=name)


def angles(x: Tensor, h: Tensor) -> tuple[Nested, Tensor]:
    h = torch.tanh(h + x)
    found = {
        "atan": torch.atan(3 * h),
        "atan2": torch.atan2(h, x + h.flip(1)),
        "asin": torch.asin(0.9 * h),
        "acos": torch.acos(0.9 * h),
        "erfc": torch.erfc(2 * h),
        "normal": torch.special.ndtr(h),
    }
    return found, h


@both_types
def test_rounding_to_decimals_has_pytorchs_bits(dtype: torch.dtype) -> None:
    """Halves, numbers that are no finite decimals, and those without a fraction."""
    x = torch.cat([torch.arange(-999, 999) / 8, 100 * numbers(999), torch.tensor([float("inf"), float("nan"), 1e30])])
    x = x.to(dtype).expand(1, 1, -1).clone().requires_grad_()

    def step(x: Tensor, h: Tensor) -> tuple[Nested, Tensor]:
        return [torch.round(x, decimals=d) for d in (1, 3, 0, -2)], h

    native, portable = (dynamic_rnn(step, x, None, x[:, 0], backend=b)[0] for b in ("native", "portable"))
    for got, want in zip(leaves(native), leaves(portable), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert not torch.autograd.grad(native[0].sum(), x)[0].any()


@both_types
def test_angles_and_the_error_function(dtype: torch.dtype) -> None:
    check(angles, [], numbers(ROWS, STEPS, UNITS), dtype)


def test_the_larger_one_and_the_hypotenuse() -> None:
    values = torch.tensor([0.0, 1.0, -3.0, 1e200, float("nan"), float("inf")], dtype=torch.float64)
    x = torch.cartesian_prod(values, values).expand(1, 1, -1, -1)

    def step(x: Tensor, h: Tensor) -> tuple[Nested, Tensor]:
        a, b = x.unbind(-1)
        return (torch.fmax(a, b), torch.fmin(a, b), torch.hypot(a.nan_to_num(2.0), b.nan_to_num(2.0))), h

    start = numbers(1, 1)
    found = (dynamic_rnn(step, x, None, start, backend=backend)[0] for backend in ("native", "portable"))
    for got, want in zip(*found):
        torch.testing.assert_close(got, want, equal_nan=True)


def differences(x: Tensor, h: Tensor) -> tuple[Nested, Tensor]:
    """PyTorch says the axis of a gradient's piece from the end."""
    h = torch.tanh(h + x)
    square = h.unsqueeze(-1) * x.unsqueeze(1)
    found = {
        "of neighbours": torch.diff(h),
        "of lines": torch.diff(square, dim=-2),
        "with one in front": torch.diff(h, prepend=h[:, :1], dim=-1),
    }
    return found, h


def test_differences_of_neighbours() -> None:
    check(differences, [], numbers(ROWS, STEPS, UNITS), torch.float64)


# --- work for once a row


def attend(x: Tensor, h: Tensor, memory: Tensor, context: Tensor, name: Tensor, *tensors: Tensor) -> Any:
    """Keys and their gradients are products of several vectors; `name` looks up a table for each row."""
    to_keys, to_values, to_query, table = tensors
    keys, values = torch.tanh(memory @ to_keys), memory @ to_values
    query = h @ to_query + x + F.embedding(name, table) + context @ to_query
    weights = torch.softmax((keys * query.unsqueeze(1)).sum(-1), -1)
    h = torch.tanh((weights.unsqueeze(1) @ values).squeeze(1) + h)
    return (h, keys.sum(1)), h


def attention() -> tuple[list[Tensor], list[Tensor]]:
    memory = [numbers(ROWS, 4, 3), numbers(ROWS, UNITS), ids(CLASSES, ROWS)]
    return [numbers(3, UNITS), numbers(3, UNITS) / 2, numbers(UNITS, UNITS), numbers(CLASSES, UNITS)], memory


def masked(x: Any, state: Nested, memory: Tensor, of_row: Tensor) -> tuple[Nested, Nested]:
    """Masks that come as inputs, with the row, in the state and as constants; of the first row, nothing is seen."""
    real, seen = x
    h, count = state
    attend = F.scaled_dot_product_attention
    h = torch.tanh(h + real)
    query, pairs, count = h.unsqueeze(1), h.view(-1, 2, 3), count + 1
    early = torch.arange(4) < count.unsqueeze(1)
    found = {
        "of an input": attend(query, memory, memory, attn_mask=seen.unsqueeze(1)),
        "of the row": attend(query, memory, memory, of_row.unsqueeze(1), scale=0.3),
        "of the state": attend(query[:, None], memory[:, None], memory[:, None], early[:, None, None]),
        "a constant": attend(pairs, pairs, pairs, attn_mask=torch.tensor([[True, False], [True, True]])),
        "numbers": attend(query, memory, memory, attn_mask=seen.to(h.dtype).unsqueeze(1)),
    }
    return found, (torch.tanh(h + found["of an input"][:, 0]), count)


def test_attention_with_a_mask_of_truths() -> None:
    """What it gives, and all gradients: also where a mask hides everything, which PyTorch answers with zeros."""
    real, start, memory = numbers(ROWS, STEPS, UNITS), numbers(ROWS, UNITS), numbers(ROWS, 4, UNITS)
    given = [t.requires_grad_() for t in (real, start, memory)]
    seen, of_row = ids(2, ROWS, STEPS, 4) > 0, ids(2, ROWS, 4) > 0
    seen[0, 1], of_row[0] = False, False
    cell = Cell(masked, [], [memory, of_row])
    state = (start, torch.zeros(ROWS, dtype=torch.long))
    found = []
    for backend in ("native", "portable"):
        outputs, last = dynamic_rnn(cell, (real, seen), LENGTHS, state, backend=backend)
        made = [*leaves(outputs), last[0]]
        found.append([*made, *torch.autograd.grad(made, given, [numbers(*m.shape) for m in made])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
    assert not found[0][0][0, 1].any()


@both_types
def test_what_is_the_same_at_all_steps_of_a_row(dtype: torch.dtype) -> None:
    tensors, memory = attention()
    check(attend, tensors, numbers(ROWS, STEPS, UNITS), dtype, memory)


def test_rows_without_a_step_are_not_looked_at() -> None:
    tensors, memory = attention()
    x = numbers(ROWS, STEPS, UNITS)
    for gone in (float("nan"), 0.0):
        memory[0][2], memory[1][2] = gone, gone
        memory[2][2] = 0 if gone == 0.0 else 1 << 40
        found = results(attend, tensors, x, memory, "native", torch.float32)
        if gone != 0.0:
            with_nan = found
    for name, value in found.items():
        assert torch.equal(with_nan[name], value), name
    memory[2][1] = CLASSES
    with pytest.raises(IndexError, match="an id that looks up one of 7 entries"):
        results(attend, tensors, x, memory, "native", torch.float32)


def test_a_row_has_the_same_bits_alone() -> None:
    tensors, memory = ([t.float() if t.is_floating_point() else t for t in given] for given in attention())
    x, start = numbers(ROWS, STEPS, UNITS).float(), numbers(ROWS, UNITS).float()
    together, _ = dynamic_rnn(Cell(attend, tensors, memory), x, LENGTHS, start, backend="native")
    for row in (0, 1, 3):
        cell = Cell(attend, tensors, [m[row : row + 1] for m in memory])
        alone, _ = dynamic_rnn(cell, x[row : row + 1], LENGTHS[row : row + 1], start[row : row + 1], backend="native")
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together))


@both_types
def test_weights_of_several_vectors_a_row(dtype: torch.dtype) -> None:
    def step(x: Tensor, h: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        heads = torch.tanh(h.unflatten(1, (2, 3)) @ w)
        h = torch.tanh((heads.transpose(1, 2) @ u).flatten(1).sum(1, keepdim=True) + x)
        return heads, h

    check(step, [numbers(3, 9), numbers(2, 5)], numbers(ROWS, STEPS, UNITS), dtype)


def test_no_gradient_comes_to_an_output_that_only_a_sum_reads() -> None:
    """The gradient of the table sums the outputs' cotangent as it is."""
    table, number = numbers(CLASSES, 9).requires_grad_(), ids(CLASSES, ROWS, STEPS)
    x, h = numbers(ROWS, STEPS, UNITS), numbers(ROWS, UNITS).requires_grad_()

    def step(x: Any, h: Tensor) -> tuple[Tensor, Tensor]:
        return F.embedding(x[1], table), h + x[0]

    _, state = dynamic_rnn(step, (x, number), None, h, backend="native")
    (found,) = torch.autograd.grad(state.sum(), [table], allow_unused=True, materialize_grads=True)
    assert not found.any()


def test_threads_and_chunks_change_no_bit() -> None:
    """Neither of work for once a row, nor of convolutions, whose rows are taken a few at a time."""
    cell = ConvLSTMCell(2, (8, 6, 2), 3, (3, 2))
    tensors, memory = ([t.requires_grad_(t.is_floating_point()) for t in given] for given in attention())
    image, line = numbers(ROWS, STEPS, 8, 6, 2).float(), numbers(ROWS, STEPS, UNITS)

    def run(chunk: int) -> list[Tensor]:
        outputs, _ = dynamic_rnn(cell, image, LENGTHS, backend="native", parallel_iterations=chunk)
        (read, _), _ = dynamic_rnn(
            Cell(attend, tensors, memory), line, LENGTHS, line[:, 0], backend="native", parallel_iterations=chunk
        )
        weights = [*cell.parameters(), *tensors, *memory[:2]]
        return [outputs, read, *torch.autograd.grad(outputs.square().sum() + read.square().sum(), weights)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = run(32)
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(run(2), wanted))
    finally:
        torch.set_num_threads(threads)
