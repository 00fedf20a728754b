"""Random settings for `memory.py budget`: a cell, a ragged batch, a budget -> the predicted and the measured peak."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from resident import Peak
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime import Budget, Recompute, SaveAll, Spill, dynamic_rnn
from throughtime._autograd import NativeCall, _Loop
from throughtime.cells import DropoutWrapper, GRUCell, LSTMCell, MultiRNNCell
from throughtime.loop.native.kernel import Batch
from throughtime.plan.memory import MemoryPolicy, Schedule

__all__ = ["measure_budget"]

FEATURES, WARM_STEPS = 64, 64
MOST_NUMBERS = 12_000_000
"""Pairs times units: what a machine that others use does in a few seconds."""
CELLS: dict[str, Callable[[int], nn.Module]] = {
    "nn.LSTMCell": lambda units: nn.LSTMCell(FEATURES, units),
    "nn.GRUCell": lambda units: nn.GRUCell(FEATURES, units),
    "peepholes": lambda units: LSTMCell(units, input_size=FEATURES, use_peepholes=True),
    "dropout": lambda units: DropoutWrapper(GRUCell(units, input_size=FEATURES), input_keep_prob=0.8),
    "two layers": lambda units: MultiRNNCell([GRUCell(units, input_size=FEATURES), GRUCell(units, input_size=units)]),
}


@dataclass(frozen=True)
class Setting:
    """lengths: longest first. trains_inputs: whether the inputs have a gradient. tightness: 0 is the least budget."""

    cell: str
    units: int
    lengths: list[int]
    dtype: torch.dtype
    trains_inputs: bool
    tightness: float

    def __str__(self) -> str:
        kind = "ragged" if self.lengths[-1] < self.lengths[0] else "dense"
        width = str(self.dtype).removeprefix("torch.float")
        return f"{self.cell} {self.units}, B {len(self.lengths)}, T {self.lengths[0]}, {kind}, {width} bit"


def setting_of(seed: int) -> Setting:
    draw = random.Random(seed)
    while True:
        units, rows, steps = (
            draw.choice([64, 128, 256, 512]),
            draw.choice([1, 4, 16, 40]),
            draw.choice([300, 1000, 5000]),
        )
        ragged = draw.random() < 0.6
        lengths = sorted((draw.randint(steps // 4, steps) if ragged else steps for _ in range(rows)), reverse=True)
        lengths[0] = steps
        dtype = torch.float64 if draw.random() < 0.2 else torch.float32
        setting = Setting(
            draw.choice(list(CELLS)), units, lengths, dtype, draw.random() < 0.5, draw.random() ** 2 * 1.1
        )
        if sum(lengths) * units <= MOST_NUMBERS:
            return setting


def measure_budget(seed: int) -> dict:
    """In the middle of a process that has compiled already, beside inputs, outputs and their gradients."""
    setting = setting_of(seed)
    torch.manual_seed(seed)
    cell = CELLS[setting.cell](setting.units).to(setting.dtype)
    calls = _watched()
    for rows in {len(setting.lengths), 1}:
        for policy in (SaveAll(), Recompute(32)):
            _train(cell, *_batch(setting, [WARM_STEPS] * rows), policy)
    cell.zero_grad()

    def schedule(policy: MemoryPolicy) -> Schedule:
        batch = Batch.of(np.array(setting.lengths), torch.get_num_threads())
        return calls[-1].kernel.schedule(policy, batch, calls[-1].chunk)

    most = schedule(SaveAll()).peak
    least = min(most, *(schedule(policy).peak for policy in (Recompute(32), Recompute(), Spill())))
    limit = int(least + setting.tightness * (most - least)) + 1
    chosen = schedule(Budget(limit))
    measured = _train(cell, *_batch(setting, setting.lengths), Budget(limit))
    return {
        "setting": str(setting),
        "policy": str(chosen.policy),
        "limit": limit,
        "predicted": chosen.peak,
        "measured": measured,
    }


def _batch(setting: Setting, lengths: list[int]) -> tuple[PackedSequence, Tensor]:
    """Inputs, and the gradient of the outputs."""
    pairs = sum(lengths)
    sizes = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
    x = torch.randn(pairs, FEATURES, dtype=setting.dtype).requires_grad_(setting.trains_inputs)
    return PackedSequence(x, sizes), torch.ones(pairs, setting.units, dtype=setting.dtype)


def _train(cell: nn.Module, inputs: PackedSequence, gradient: Tensor, policy: MemoryPolicy) -> float:
    """The peak of a forward and a backward pass, less the outputs, and in the backward pass the inputs' gradient."""
    with Peak() as forward:
        outputs, _ = dynamic_rnn(cell, inputs, backend="native", memory=policy)
    values = outputs.data
    with Peak(forward) as backward:
        values.backward(gradient)
    given_back = inputs.data.nbytes if inputs.data.requires_grad else 0
    return max(forward.bytes - values.nbytes, backward.bytes - values.nbytes - given_back)


def _watched() -> list[NativeCall]:
    """The native calls from now on."""
    calls: list[NativeCall] = []
    forward = _Loop.forward

    def noting(ctx: object, call: NativeCall, *rest: object) -> object:
        calls.append(call)
        return forward(ctx, call, *rest)  # type: ignore[arg-type]

    _Loop.forward = staticmethod(noting)  # type: ignore[method-assign, assignment]
    return calls
