"""raw_rnn does what its docstring's loop does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from throughtime import GRUCell, dynamic_rnn
from throughtime.decode import AttentionWrapper, LuongAttention, raw_rnn

LENGTHS = torch.tensor([4, 0, 2])


def loop_over(cell: Any, x: Tensor, lengths: Tensor, emit_first: Any = None) -> Any:
    def loop_fn(time: int, output: Any, state: Any, loop_state: Any) -> Any:
        start = cell.initial_state(3) if output is None else state
        step = x[min(time, len(x) - 1)]
        return lengths <= time, step, start, emit_first if output is None else output, None

    return loop_fn


@pytest.mark.parametrize("attention", [False, True])
def test_the_same_as_dynamic_rnn(attention: bool) -> None:
    torch.manual_seed(0)
    cell: Any = GRUCell(5)
    if attention:
        cell = AttentionWrapper(cell, LuongAttention(5, torch.randn(3, 6, 4)), 2)
    x = torch.randn(4, 3, 3)
    outputs, state, loop_state = raw_rnn(cell, loop_over(cell, x, LENGTHS))
    ran, final = dynamic_rnn(cell, x, LENGTHS, time_major=True, backend="portable")
    torch.testing.assert_close(outputs, ran)
    torch.testing.assert_close(state[0] if attention else state, final[0] if attention else final)
    assert loop_state is None


def test_no_steps() -> None:
    cell, x = GRUCell(5), torch.randn(1, 3, 3)
    outputs, state, _ = raw_rnn(cell, loop_over(cell, x, LENGTHS * 0))
    assert outputs.shape == (0, 3, 5)
    assert torch.equal(state, torch.zeros(3, 5))
    outputs, _, _ = raw_rnn(cell, loop_over(cell, x, LENGTHS * 0, {"a": torch.zeros(2)}))
    assert outputs["a"].shape == (0, 3, 2)


def test_the_loop_state_is_kept_where_none_comes_back() -> None:
    cell = GRUCell(5)

    def loop_fn(time: int, output: Any, state: Any, loop_state: Any) -> Any:
        state = cell.initial_state(3) if output is None else state
        return time >= LENGTHS, torch.ones(3, 2), state, output, "first" if output is None else None

    assert raw_rnn(cell, loop_fn)[2] == "first"


def test_what_loop_fn_must_return() -> None:
    cell, x = GRUCell(5), torch.randn(4, 3, 3)
    with pytest.raises(TypeError, match="loop_fn must be callable, got a int"):
        raw_rnn(cell, 3)
    good = loop_over(cell, x, LENGTHS)
    with pytest.raises(ValueError, match="must return the initial state"):
        raw_rnn(cell, lambda *args: (*good(*args)[:2], None, *good(*args)[3:]))
    with pytest.raises(ValueError, match=r"finished as bool, one entry per row; got torch.int64 \[3\]"):
        raw_rnn(cell, lambda *args: (good(*args)[0].long(), *good(*args)[1:]))
    with pytest.raises(ValueError, match=r"finished as bool, one entry per row; got torch.bool \[2\]"):
        raw_rnn(cell, lambda time, *args: (good(time, *args)[0][: 3 - bool(time)], *good(time, *args)[1:]))
    with pytest.raises(ValueError, match="what is emitted at every step, got None at time 1"):
        raw_rnn(cell, lambda *args: (*good(*args)[:3], None, None))
