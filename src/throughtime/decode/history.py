"""Nested states -> the attention states in them; where decoders find weights, and where they put the history."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from throughtime._nested import Nested
from throughtime.decode.wrapper import AttentionOutput, AttentionWrapper, AttentionWrapperState

__all__ = ["Recorded", "alignments_of", "map_attention_states", "plain_output", "put_history", "wants_history"]


class Recorded(NamedTuple):
    """A decoder's outputs of one step, and the weights that go into the history; `finalize` takes them apart."""

    outputs: Nested
    alignments: tuple[Nested, ...]


def wants_history(cell: Any) -> bool:
    """Whether an attention cell in `cell` was made with alignment_history=True."""
    modules = cell.modules() if isinstance(cell, nn.Module) else ()
    return any(isinstance(module, AttentionWrapper) and module.alignment_history for module in modules)


def alignments_of(state: Nested) -> tuple[Nested, ...]:
    """The weights of every attention state in `state`, from left to right."""
    found: list[Nested] = []

    def note(attention_state: AttentionWrapperState) -> AttentionWrapperState:
        found.append(attention_state.alignments)
        return attention_state

    map_attention_states(note, state)
    return tuple(found)


def put_history(state: Nested, histories: tuple[Nested, ...]) -> Nested:
    """`state` with `histories` as the alignment_history of its attention states, in the order of `alignments_of`."""
    remaining = iter(histories)
    return map_attention_states(lambda found: found._replace(alignment_history=next(remaining)), state)


def map_attention_states(function: Callable[[AttentionWrapperState], AttentionWrapperState], state: Nested) -> Nested:
    if isinstance(state, AttentionWrapperState):
        return function(state)
    if isinstance(state, dict):
        return {key: map_attention_states(function, part) for key, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [map_attention_states(function, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def plain_output(output: Nested) -> Tensor:
    """The output of a step without the weights that `output_alignments=True` adds."""
    return output.output if isinstance(output, AttentionOutput) else output
