"""The portable loop under memory policies. That they change no number: tests/memory/test_bitwise.py."""

import pytest
import torch

from throughtime import Budget, GRUCell, MemoryPolicyError, dynamic_rnn


def test_a_budget_needs_the_native_backends_prediction() -> None:
    x = torch.zeros(2, 3, 4, requires_grad=True)
    with pytest.raises(MemoryPolicyError, match=r"Budget.* needs a prediction, which only the native backend makes"):
        dynamic_rnn(GRUCell(5), x, memory=Budget("1MB"), backend="portable")
