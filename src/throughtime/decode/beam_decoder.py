"""A cell -> a decoder that keeps the K best hypotheses of each row.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/beam_search_decoder.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves
from throughtime._state import initial_row_consts
from throughtime.decode.beams import BeamRules, Beams, Extension, candidates, extend, of_parents, start_beams
from throughtime.decode.beams_tf1 import extend_as_tensorflow
from throughtime.decode.decoder import Decoder, float_dtype, run_cell
from throughtime.decode.history import Recorded, alignments_of, plain_output, put_history, wants_history
from throughtime.decode.tokens import check_callable, check_logits, read_embedding, read_end_token, read_tokens
from throughtime.decode.tree import gather_tree, gather_tree_from_array

__all__ = [
    "BeamSearchDecoder",
    "BeamSearchDecoderOutput",
    "BeamSearchDecoderState",
    "FinalBeamSearchDecoderOutput",
    "attention_of",
]


class BeamSearchDecoderState(NamedTuple):
    """[B, K, ...] in every leaf; accumulated_attention_probs is () without a coverage penalty."""

    cell_state: Nested
    log_probs: Tensor
    finished: Tensor
    lengths: Tensor
    accumulated_attention_probs: Tensor | tuple[()]


class BeamSearchDecoderOutput(NamedTuple):
    """One step: each beam's score, the token it appended, the beam before the step that it appended it to."""

    scores: Tensor
    predicted_ids: Tensor
    parent_ids: Tensor


class FinalBeamSearchDecoderOutput(NamedTuple):
    """predicted_ids: [B, T, K], each beam's sequence from its first token, best beam first; filled with end tokens."""

    predicted_ids: Tensor
    beam_search_decoder_output: BeamSearchDecoderOutput


class BeamSearchDecoder(Decoder):
    """Beam search: K hypotheses a row, the best continuations of all of them kept at every step.

    A hypothesis is scored `log p / ((5 + length) / 6) ** length_penalty_weight`, and when it ends
    `coverage_penalty_weight * sum over the memory of log(min(attention so far, 1))` is added. A beam that has said the
    end token keeps its place while its score is among the K best. The search of a row ends when all its beams have.

    What differs from TensorFlow, whose numbers `tf1_exact=True` gives: a length counts the end token in the score too;
    coverage is paid when a beam ends, not a step later; so the score of a finished beam never moves. The lengths that
    `dynamic_decode` returns follow their beams, and so does the alignment history (TensorFlow's is one step off). Rows
    whose beams have all finished are left out. A beam of score minus infinity is no hypothesis: there are fewer than K.

    Args:
        cell: any cell. With attention, its memory and memory lengths tiled: `tile_batch(memory, beam_width)`.
        embedding: a table [V, E], an nn.Embedding, or a function of ids.
        start_tokens: [B].
        end_token: a whole number; within the vocabulary.
        initial_state: of the cell, tiled: [B * K, ...] in every leaf.
        beam_width: K.
        output_layer: a function of the cell's output to logits.
        length_penalty_weight, coverage_penalty_weight: 0 for none.
        reorder_tensor_arrays: whether the alignment history follows the final beams.
        tf1_exact: TensorFlow's arithmetic.

    Source: TensorFlow 1.15, `tf.contrib.seq2seq.BeamSearchDecoder`; Wu et al. 2016, arXiv 1609.08144, equation 14.
    """

    tracks_own_finished = True

    def __init__(
        self,
        cell: Any,
        embedding: Any,
        start_tokens: Any,
        end_token: Any,
        initial_state: Nested,
        beam_width: int,
        output_layer: Callable[[Tensor], Tensor] | None = None,
        length_penalty_weight: float = 0.0,
        coverage_penalty_weight: float = 0.0,
        reorder_tensor_arrays: bool = True,
        *,
        tf1_exact: bool = False,
    ) -> None:
        name = "BeamSearchDecoder"
        if isinstance(beam_width, bool) or not isinstance(beam_width, int) or beam_width < 1:
            raise ValueError(f"{name}: beam_width must be a whole number of at least 1, got {beam_width!r}.")
        check_callable(name, optional={"output_layer": output_layer})
        self.cell, self.output_layer, self.tf1_exact = cell, output_layer, tf1_exact
        self._embedding = read_embedding(name, embedding)
        self._start_tokens = read_tokens(name, start_tokens, self._embedding)
        end = read_end_token(name, end_token)
        self.rules = BeamRules(beam_width, end, length_penalty_weight, coverage_penalty_weight)
        self._check_tiled(initial_state)
        self._initial_cell_state = self._split(initial_state)
        self._reorders = reorder_tensor_arrays
        self._records = wants_history(cell)

    @property
    def batch_size(self) -> int:
        return self._start_tokens.shape[0]

    @property
    def drops_rows(self) -> bool:
        return not self.tf1_exact

    def initialize(self) -> tuple[Tensor, Nested, BeamSearchDecoderState]:
        dtype = float_dtype(self.cell, self._initial_cell_state)
        rows, width = self.batch_size, self.rules.width
        beams = start_beams(rows, width, dtype, self._start_tokens.device)
        covered: Tensor | tuple[()] = ()
        if self.rules.coverage_weight:
            covered = torch.zeros_like(attention_of(self._initial_cell_state, "BeamSearchDecoder"))
        start = self._start_tokens[:, None].expand(-1, width)
        state = BeamSearchDecoderState(self._initial_cell_state, *beams[:3], covered)
        return beams.finished, self._embedding(start), state

    def row_consts(self) -> Nested:
        """What the cell keeps per beam, [B, K, ...]."""
        rows, device = self.batch_size * self.rules.width, self._start_tokens.device
        dtype = float_dtype(self.cell, self._initial_cell_state)
        return self._split(initial_row_consts(self.cell, rows, dtype, device))

    def step(
        self, time: int, inputs: Nested, state: Nested, row_consts: Nested = ()
    ) -> tuple[Nested, BeamSearchDecoderState, Nested, Tensor]:
        output, flat_state = run_cell(self.cell, *(_merge(v) for v in (inputs, state.cell_state, row_consts)))
        output = plain_output(output)
        logits = output if self.output_layer is None else self.output_layer(output)
        check_logits("BeamSearchDecoder", logits, state.finished.numel(), self.rules.end_token, self._embedding)
        cell_state = self._split(flat_state)
        extension = self._extend(state, logits.unflatten(0, state.finished.shape), cell_state)
        beams = extension.beams
        moved = map_leaves(lambda leaf: of_parents(leaf, extension.parents), cell_state)
        next_state = BeamSearchDecoderState(moved, *beams)
        outputs = BeamSearchDecoderOutput(extension.scores, extension.tokens, extension.parents)
        if self._records:
            outputs = Recorded(outputs, alignments_of(cell_state if self.tf1_exact else moved))
        return outputs, next_state, self._embedding(extension.tokens), beams.finished

    def finalize(self, outputs: Nested, final_state: Nested, sequence_lengths: Tensor) -> tuple[Nested, Nested]:
        """Walk back from the last step; `sequence_lengths` [B, K], of each place, tell how many steps a row ran."""
        steps: BeamSearchDecoderOutput = outputs.outputs if self._records else outputs
        if self.drops_rows:
            steps = self._fill(steps, sequence_lengths.amax(1))
        lengths = final_state.lengths
        end = self.rules.end_token or 0
        ids = gather_tree(steps.predicted_ids, steps.parent_ids, lengths.amax(1), end)
        if self._records:
            histories = outputs.alignments
            if self._reorders:
                histories = map_leaves(lambda leaf: gather_tree_from_array(leaf, steps.parent_ids, lengths), histories)
            histories = map_leaves(lambda leaf: leaf.flatten(1, 2), histories)
            final_state = final_state._replace(cell_state=put_history(final_state.cell_state, histories))
        return FinalBeamSearchDecoderOutput(ids, steps), final_state

    def final_lengths(self, final_state: Nested, sequence_lengths: Tensor) -> Tensor:
        return sequence_lengths if self.tf1_exact else final_state.lengths

    def _extend(self, state: BeamSearchDecoderState, logits: Tensor, cell_state: Nested) -> Extension:
        beams = Beams(state.log_probs, state.finished, state.lengths, state.accumulated_attention_probs)
        attention = attention_of(cell_state, "BeamSearchDecoder") if self.rules.coverage_weight else None
        if self.tf1_exact:
            return extend_as_tensorflow(beams, logits, attention, self.rules)
        return extend(beams, *candidates(logits, self.rules), attention, self.rules)

    def _fill(self, steps: BeamSearchDecoderOutput, ran: Tensor) -> BeamSearchDecoderOutput:
        """The steps after a row's last: its beams stay where they are, at their scores."""
        if steps.scores.shape[0] == 0:
            return steps
        over = (torch.arange(steps.scores.shape[0], device=ran.device)[:, None] >= ran)[:, :, None]
        rows = torch.arange(self.batch_size, device=ran.device)
        own = torch.arange(self.rules.width, device=ran.device)
        last = steps.scores[(ran - 1).clamp(min=0), rows]
        return BeamSearchDecoderOutput(
            torch.where(over, last, steps.scores),
            torch.where(over, self.rules.end_token or 0, steps.predicted_ids),
            torch.where(over, own, steps.parent_ids),
        )

    def _split(self, value: Nested) -> Nested:
        """[B * K, ...] -> [B, K, ...] in every leaf."""
        return map_leaves(lambda leaf: leaf.unflatten(0, (-1, self.rules.width)), value)

    def _check_tiled(self, state: Nested) -> None:
        rows, width = self.batch_size, self.rules.width
        for path, leaf in leaves_with_paths(state, "initial_state"):
            if leaf.shape[0] != rows * width:
                raise ValueError(
                    f"BeamSearchDecoder: {path} must have {rows * width} rows, one per beam ({rows} start tokens, "
                    f"beam_width {width}); got {list(leaf.shape)}. Tile it first: tile_batch(state, beam_width)."
                )


def attention_of(state: Nested, name: str) -> Tensor:
    """The weights of a step, the mean over all mechanisms."""
    weights = leaves(alignments_of(state))
    if not weights:
        raise ValueError(
            f"{name}: a coverage penalty must be 0 if no cell is attentional. "
            f"Wrap the cell into an AttentionWrapper, or leave the penalty out."
        )
    return weights[0] if len(weights) == 1 else torch.stack(weights).mean(0)


def _merge(value: Nested) -> Nested:
    return map_leaves(lambda leaf: leaf.flatten(0, 1), value)
