"""Work for once a row -> its results: the program over pairs, whose pairs are the rows.

The rows are computed by the same machine code as the steps, so that a row's bits do not depend on the other rows. Those
without a step are left alone: nothing is known of what they hold.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from torch import Tensor

from throughtime.loop.native.batch import Batch, Bound, Constants, Located
from throughtime.loop.native.room import fresh
from throughtime.loop.native.run import Walker
from throughtime.loop.native.sums import Sums

if TYPE_CHECKING:
    from throughtime.loop.native.kernel import NativeKernel

__all__ = ["RowResults", "run_over_rows"]


class RowResults(NamedTuple):
    """made: values of rows by buffer. totals: sums over the rows by name."""

    made: dict[str, Tensor]
    totals: dict[str, Tensor]


def run_over_rows(
    kernel: "NativeKernel",
    direction: Literal["before", "after"],
    batch: Batch,
    consts: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    prefix: str,
) -> RowResults:
    """rows: what the program reads, [B, ...]. prefix: of the buffers that it makes; zero for rows without a step."""
    count = len(batch.lengths)
    made = {name: tensor.zero_() for name, tensor in kernel.empty(direction, (prefix,), count).items()}
    one_step = Batch.of(np.minimum(batch.lengths, 1), batch.threads)
    if one_step.steps == 0:
        return RowResults(made, {})
    located = {name: Located(tensor) for name, tensor in {**rows, **made}.items()}
    bound = Bound(one_step, Constants(consts), {}, {}, None, None, fresh)
    walker = Walker(kernel, direction, bound, {}, 1)
    local = walker.steps(0, 1, located, 0, {})
    if direction == "before":
        return RowResults(made, {})
    sums = Sums(kernel, bound, "rows")
    sums.add_steps(0, 1, one_step, {**located, **local})
    return RowResults(made, sums.totals)
