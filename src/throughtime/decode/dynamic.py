"""A decoder -> outputs, final state and lengths: steps until every row has finished.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/decoder.py (dynamic_decode).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, flatten, leaves, map_leaves, unflatten
from throughtime._sequence import spread_out
from throughtime._state import trial
from throughtime.decode.decoder import Decoder

__all__ = ["dynamic_decode"]


def dynamic_decode(
    decoder: Decoder,
    output_time_major: bool = False,
    impute_finished: bool = False,
    maximum_iterations: int | None = None,
) -> tuple[Nested, Nested, Tensor]:
    """Run a decoder's step until every row has finished, or for `maximum_iterations` steps.

    Means::

        finished, inputs, state = decoder.initialize()
        while not all(finished) and time < maximum_iterations:
            output[time], state, inputs, now_finished = decoder.step(time, inputs, state)
            finished = finished or now_finished           # where the decoder does not track its own

    A row's length counts its steps, the one that finished it included.

    Args:
        decoder: a `BasicDecoder`, a `BeamSearchDecoder`, or one's own.
        output_time_major: whether outputs are [T, B, ...] or [B, T, ...].
        impute_finished: a row that has finished is left alone: its outputs are 0 and its state is kept, and where the
            decoder allows it (`drops_rows`) the row costs nothing more. Otherwise, as in TensorFlow, finished rows go
            on as they are until the last row has finished, and their outputs and states are what they happen to be.
        maximum_iterations: a whole number; by default no limit.

    Returns:
        (outputs, state, lengths [B]): outputs as nested as the decoder's.

    Raises:
        ValueError: a maximum that is no whole number of at least 0; imputing what tracks its own end.

    Source: TensorFlow 1.15, `tf.contrib.seq2seq.dynamic_decode`.
    """
    _check(decoder, impute_finished, maximum_iterations)
    finished, inputs, state = decoder.initialize()
    row_consts = decoder.row_consts()
    drops = decoder.drops_rows and (impute_finished or decoder.tracks_own_finished)
    run = _Run(decoder, impute_finished and not drops, drops, finished.shape[0])
    lengths = torch.zeros(finished.shape, dtype=torch.long, device=finished.device)
    frame = _Frame(inputs, state, finished, lengths, row_consts)
    outputs, final_state, lengths = run.all_steps(frame, maximum_iterations)
    outputs, final_state = decoder.finalize(outputs, final_state, lengths)
    if not output_time_major:
        outputs = map_leaves(lambda leaf: leaf.transpose(0, 1), outputs)
    return outputs, final_state, decoder.final_lengths(final_state, lengths)


@dataclass(frozen=True)
class _Frame:
    """What goes from step to step, for the rows that still run."""

    inputs: Nested
    state: Nested
    finished: Tensor
    lengths: Tensor
    row_consts: Nested

    def running(self) -> Tensor:
        """The places of the rows that have not finished, in some of their beams at least."""
        finished = self.finished
        return (~finished if finished.dim() == 1 else ~finished.flatten(1).all(1)).nonzero()[:, 0]

    def select(self, index: Tensor) -> "_Frame":
        parts = (self.inputs, self.state, self.finished, self.lengths, self.row_consts)
        return _Frame(*map_leaves(lambda leaf: leaf.index_select(0, index), parts))


@dataclass(frozen=True)
class _Run:
    """imputes: finished rows are masked; drops: they are taken out."""

    decoder: Decoder
    imputes: bool
    drops: bool
    batch_size: int

    def all_steps(self, frame: _Frame, limit: int | None) -> tuple[Nested, Nested, Tensor]:
        """Outputs [T, B, ...], final state and lengths."""
        first, rows = frame, torch.arange(self.batch_size, device=frame.finished.device)
        outputs: list[Nested] = []
        stepped: list[Tensor] = []
        left: list[tuple[Tensor, Nested]] = []
        time = 0
        while time != limit:
            running = frame.running()
            if len(running) == 0:
                break
            if self.drops and len(running) < len(rows):
                left.append(self._leave(frame, rows, running))
                frame, rows = frame.select(running), rows[running]
            output, frame = self._step(time, frame)
            outputs.append(output)
            stepped.append(rows)
            time += 1
        left.append((rows, (frame.state, frame.lengths)))
        final_state, lengths = _back_in_place(left)
        joined = self._join(outputs, stepped) if outputs else self._no_steps(first)
        return joined, final_state, lengths

    def _step(self, time: int, frame: _Frame) -> tuple[Nested, _Frame]:
        outputs, state, inputs, finished = self._run(time, frame)
        if not self.decoder.tracks_own_finished:
            finished = finished | frame.finished
        lengths = torch.where(frame.finished, frame.lengths, time + 1)
        if self.imputes:
            outputs = map_leaves(lambda leaf: _where(frame.finished, torch.zeros_like(leaf), leaf), outputs)
            state = map_leaves(lambda old, new: _where(frame.finished, old, new), frame.state, state)
        return outputs, replace(frame, inputs=inputs, state=state, finished=finished, lengths=lengths)

    def _run(self, time: int, frame: _Frame) -> tuple[Nested, Nested, Nested, Tensor]:
        if leaves(frame.row_consts):
            return self.decoder.step(time, frame.inputs, frame.state, frame.row_consts)
        return self.decoder.step(time, frame.inputs, frame.state)

    def _leave(self, frame: _Frame, rows: Tensor, running: Tensor) -> tuple[Tensor, Nested]:
        """What the rows that have finished leave behind."""
        stays = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        stays[running] = True
        gone = (~stays).nonzero()[:, 0]
        return rows[gone], map_leaves(lambda leaf: leaf.index_select(0, gone), (frame.state, frame.lengths))

    def _join(self, outputs: list[Nested], stepped: list[Tensor]) -> Nested:
        """One output a step, for the rows that ran -> [T, B, ...], 0 where a row did not run."""
        if all(len(rows) == self.batch_size for rows in stepped):
            return map_leaves(lambda *steps: torch.stack(steps), outputs[0], *outputs[1:])
        places = torch.cat([rows + t * self.batch_size for t, rows in enumerate(stepped)])

        def join(*steps: Tensor) -> Tensor:
            full = spread_out(torch.cat(steps), places, len(steps) * self.batch_size)
            return full.unflatten(0, (len(steps), self.batch_size))

        structure = flatten(outputs[0])[1]
        return unflatten(structure, [join(*column) for column in zip(*map(leaves, outputs))])

    def _no_steps(self, frame: _Frame) -> Nested:
        """Empty outputs, of the shapes that a step would give."""
        with trial(frame.state if leaves(frame.state) else frame.finished):
            outputs = self._run(0, frame)[0]
        return map_leaves(lambda leaf: leaf.new_zeros(0, *leaf.shape), outputs)


def _back_in_place(parts: list[tuple[Tensor, Nested]]) -> Nested:
    """Values of some rows each -> the value of all rows, in the batch's order."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([rows for rows, _ in parts]).argsort()
    structure = flatten(parts[0][1])[1]
    columns = zip(*(leaves(value) for _, value in parts))
    return unflatten(structure, [torch.cat(column).index_select(0, order) for column in columns])


def _where(finished: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(finished.reshape(-1, *[1] * (no.dim() - 1)), yes, no)


def _check(decoder: Any, impute_finished: bool, limit: Any) -> None:
    if not isinstance(decoder, Decoder):
        raise TypeError(f"dynamic_decode: decoder must be a Decoder, got a {type(decoder).__name__}.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"dynamic_decode: maximum_iterations must be a scalar, a whole number; got {limit!r}.")
    if impute_finished and decoder.tracks_own_finished:
        raise ValueError(
            "dynamic_decode: impute_finished=True zeroes the parents of finished beams, and a decoder that tracks its "
            "own finished rows looks after them itself. Leave impute_finished out."
        )
