"""Our rules for the shapes of results give what PyTorch's give, or nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from throughtime.capture.shape_rules import META, shape_of_result

aten = torch.ops.aten


def shape(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device=META)


OPERANDS = {
    "alike": (shape(5, 3), shape(5, 3), shape(5, 3)),
    "a vector": (shape(5, 3), shape(3), shape(5, 1)),
    "a number": (shape(5, 3), shape(), shape(1)),
    "the larger second": (shape(3), shape(2, 5, 3), shape()),
    "slices": (shape(5, 8)[:, :3], shape(5, 8)[:, 2:5], shape(5, 3)),
    "expanded": (shape(5, 1).expand(5, 3), shape(3).expand(5, 3), shape(1, 1).expand(5, 3)),
    "turned": (shape(3, 5).t(), shape(3, 5).t(), shape(3, 5).t()),
    "half turned": (shape(3, 5).t(), shape(5, 3), shape(5, 3)),
    "doubles": tuple(shape(5, 3, dtype=torch.float64) for _ in range(3)),
    "mixed": (shape(5, 3), shape(5, 3, dtype=torch.float64), shape(5, 3)),
    "whole": tuple(shape(5, 3, dtype=torch.int64) for _ in range(3)),
    "truths": tuple(shape(5, 3, dtype=torch.bool) for _ in range(3)),
}


def pointwise_operators() -> Iterator[Any]:
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in getattr(packet, "overloads", list)():
            operator = getattr(packet, overload)
            wanted = any(a.kwarg_only and not a.has_default_value() for a in operator._schema.arguments)
            if torch.Tag.pointwise in operator.tags and not wanted:
                yield operator


def arguments(operator: Any, tensors: tuple[Tensor, ...]) -> list[Any] | None:
    rest, made = list(tensors), []
    for argument in operator._schema.arguments:
        kind = str(argument.type)
        if argument.kwarg_only:
            continue
        if "Tensor" in kind:
            if not rest:
                return None
            made.append(rest.pop(0))
        else:
            given = argument.default_value if argument.has_default_value() else None
            made.append(1 if given is None and "Generator" not in kind else given)
    return made


def agrees(operator: Any, args: Any) -> bool:
    """Whether we answered. PyTorch raises for some arguments: then we must not answer."""
    ours = shape_of_result(operator, args, {})
    try:
        theirs = operator(*args)
    except (RuntimeError, ValueError, IndexError, NotImplementedError, TypeError, AssertionError):
        assert ours is None, operator
        return False
    if ours is None:
        return False
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for mine, torchs in pairs:
        described = [(t.shape, t.stride(), t.dtype, t.device) for t in (mine, torchs)]
        assert described[0] == described[1], operator
    return True


@pytest.mark.parametrize("name", OPERANDS)
def test_pointwise(name: str) -> None:
    answered = 0
    for operator in pointwise_operators():
        args = arguments(operator, OPERANDS[name])
        answered += args is not None and agrees(operator, args)
    assert (answered > 100) == (name not in ("turned", "half turned", "whole", "truths"))


X, IDS, TRUTHS = shape(5, 3), shape(5, 2, dtype=torch.int64), shape(5, 3, dtype=torch.bool)
OTHERS: dict[str, tuple[Any, list[tuple[Any, ...]], int]] = {
    "where": (aten.where.self, [(TRUTHS, X, X), (TRUTHS, X, shape()), (TRUTHS, shape(3), shape()), (X, X, X)], 3),
    "softmax": (aten._softmax.default, [(X, -1, False), (X, 5, False), (X.t(), 0, False), (IDS, 0, False)], 1),
    "log softmax": (aten._log_softmax.default, [(X, 1, False)], 1),
    "dropout": (aten.native_dropout.default, [(X, 0.5, True), (X, 0.5, False), (X.t(), 0.5, True)], 1),
    "dropout backward": (aten.native_dropout_backward.default, [(X, TRUTHS, 2.0), (X, TRUTHS[:, :2], 2.0)], 1),
    "mm": (aten.mm.default, [(X, X.t()), (X, X), (X, IDS), (X.t(), X), (X, shape(3))], 2),
    "bmm": (aten.bmm.default, [(shape(2, 5, 3), shape(2, 3, 4)), (shape(2, 5, 3), shape(1, 3, 4)), (X, X.t())], 1),
    "sum": (aten.sum.dim_IntList, [(X, [1]), (X, [0, -1], True), (X, [2]), (X, [1, -1]), (X, []), (TRUTHS, [1])], 2),
    "amax": (aten.amax.default, [(X, [1]), (X, [0], True), (X, [])], 2),
    "amin": (aten.amin.default, [(X, [-1])], 1),
    "cat": (
        aten.cat.default,
        [([X, X], 1), ([X, shape(2, 3)],), ([X, X.t()], 1), ([X, X], 3), ([X, shape(0)], 1), ([X, IDS], 1), ([X], -1)],
        3,
    ),
    "stack": (aten.stack.default, [([X, X], 1), ([X, X], -1), ([X, X], 3), ([X, X.t()],), ([X, shape(5, 2)],)], 2),
    "masked fill": (
        aten.masked_fill.Scalar,
        [(X, TRUTHS, 0.5), (X, shape(3, dtype=torch.bool), 0), (X, X, 1), (X, shape(2, 5, 3, dtype=torch.bool), 0)],
        2,
    ),
    "rand_like": (aten.rand_like.default, [(X,), (X.t(),), (IDS,)], 1),
    "cumsum": (aten.cumsum.default, [(X, 1), (X, -2), (X, 2), (X.t(), 0), (IDS, 0)], 2),
    "mv": (aten.mv.default, [(X, shape(3)), (X, shape(5)), (X.t(), shape(5)), (X, X)], 2),
    "embedding": (aten.embedding.default, [(X, IDS), (X, X), (shape(2, 5, 3), IDS)], 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str) -> None:
    """The number of those that we answer says that a rule is not just silent."""
    operator, calls, answered = OTHERS[name]
    assert sum(agrees(operator, args) for args in calls) == answered
