"""A cell and attention mechanisms -> a cell that reads a memory at every step.

Source: TensorFlow 1.15, contrib/seq2seq/attention_wrapper.py; Luong et al. 2015, section 3.3 (input feeding).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime._nested import Nested, leaves, leaves_with_paths, map_leaves, same_structure
from throughtime._state import declares_state
from throughtime.cells._base import RNNCell
from throughtime.cells._inner import call_cell, initial_state_of, output_size_of, row_consts_of, state_size_of
from throughtime.cells._options import read_units
from throughtime.cells._parameters import Dense
from throughtime.decode.attention import AttentionMechanism, Memory
from throughtime.decode.tokens import check_callable

__all__ = ["AttentionOutput", "AttentionWrapper", "AttentionWrapperState"]

AttentionFunction = Callable[..., tuple[Tensor, Tensor, Nested]]


class AttentionWrapperState(NamedTuple):
    """The state of an `AttentionWrapper`, [B, ...] in every leaf.

    cell_state: of the cell inside.
    attention: [B, A], what was read at the step before; fed to the cell with its next input.
    alignments: [B, M], the weights of the step before; a tuple where there are several mechanisms.
    alignment_history: () during a run; afterwards, from decoders, [T, B, M]. See `AttentionWrapper`.
    attention_state: [B, M], what each mechanism carries from step to step.
    """

    cell_state: Nested
    attention: Tensor
    alignments: Nested
    alignment_history: Nested
    attention_state: Nested

    def clone(self, **fields: Nested) -> "AttentionWrapperState":
        """A copy with other fields, each shaped as here: `start.clone(cell_state=encoder_state)`."""
        for name, value in fields.items():
            if name not in self._fields:
                raise ValueError(f"AttentionWrapperState.clone: no field {name}; they are {', '.join(self._fields)}.")
            _check_same(name, getattr(self, name), value)
        return self._replace(**fields)


class AttentionOutput(NamedTuple):
    """A step's output and the weights it was made with, from `AttentionWrapper(output_alignments=True)`."""

    output: Tensor
    alignments: Nested


class AttentionConsts(NamedTuple):
    """What an attention cell keeps per row: the constants of the cell inside, and each mechanism's memory."""

    cell: Nested
    memories: tuple[Memory, ...]


class AttentionWrapper(RNNCell):
    """A cell that looks into a memory::

        output, cell_state = cell(cell_input_fn(x, attention), cell_state)
        alignments, attention_state = attention_mechanism(output, attention_state)
        context = sum(alignments * memory)
        attention = cat([output, context]) @ attention_layer.kernel    # without an attention layer: context
        output = attention                                             # with output_attention=False: output

    The memory is a constant per row: `dynamic_rnn` and the decoders ask for it once a call (`row_consts`), and run the
    keys' product then. Called directly, `cell(x, state)` uses the whole memory and makes its keys at every step; give
    `cell(x, state, cell.row_consts(batch_size, dtype, device))` what it would make.

    The weights of all steps. A state has one shape at all steps, so it holds the last weights only.
    `alignment_history=True` makes the decoders keep them: `final_state.alignment_history` is [T, B, M], time first as
    in TensorFlow, 0 after a row's end where finished rows are dropped. `output_alignments=True` makes the weights part
    of the output, for every unroller: `dynamic_rnn` then returns `AttentionOutput(output, alignments)`, [B, T, M].

    Args:
        cell: the cell inside.
        attention_mechanism: one, or a list of several; their attentions are concatenated.
        attention_layer_size: the size of each mechanism's attention layer (an int, a list for several mechanisms).
        alignment_history: whether decoders keep the weights of all steps.
        cell_input_fn: (x, attention) -> the inputs of the cell inside; by default they are concatenated.
        output_attention: whether the output is the attention (Luong) or the cell's output (Bahdanau).
        initial_cell_state: what the cell inside starts from; by default its own initial state.
        attention_layer: a module [output size + D] -> [A], or a list of them, instead of attention_layer_size.
        attention_fn: (mechanism, output, attention_state, attention_layer, memory) ->
            (attention, alignments, next_attention_state), by default as above.
        output_alignments: whether the output is `AttentionOutput(output, alignments)`.

    Parameters: those of the cell under `cell`, of the mechanism under `attention_mechanism` (several:
    `attention_mechanisms.0`, ...), and `attention_layer.kernel` [output + D, A] (several: `attention_layer_1` ...).

    TensorFlow's state has a `time` as well, a scalar that counts steps; here the history needs none.

    Source: Luong et al. 2015, arXiv 1508.04025; Bahdanau et al. 2015, arXiv 1409.0473.

    >>> import torch, throughtime
    >>> attention = throughtime.LuongAttention(8, memory=torch.randn(2, 7, 6), memory_sequence_length=[7, 3])
    >>> cell = throughtime.AttentionWrapper(throughtime.GRUCell(8), attention, attention_layer_size=5)
    >>> outputs, state = throughtime.dynamic_rnn(cell, torch.randn(2, 4, 3), sequence_length=[4, 2])
    >>> outputs.shape, state.alignments.shape
    (torch.Size([2, 4, 5]), torch.Size([2, 7]))
    """

    def __init__(
        self,
        cell: Any,
        attention_mechanism: AttentionMechanism | Sequence[AttentionMechanism],
        attention_layer_size: int | Sequence[int] | None = None,
        alignment_history: bool = False,
        cell_input_fn: Callable[[Any, Tensor], Any] | None = None,
        output_attention: bool = True,
        initial_cell_state: Nested = None,
        *,
        attention_layer: nn.Module | Sequence[nn.Module] | None = None,
        attention_fn: AttentionFunction | None = None,
        output_alignments: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        functions = {"cell_input_fn": cell_input_fn, "attention_fn": attention_fn}
        check_callable("AttentionWrapper", cell=cell, optional=functions)
        self.cell = cell
        self.several = isinstance(attention_mechanism, (list, tuple))
        mechanisms: list[Any] = list(attention_mechanism) if self.several else [attention_mechanism]  # type: ignore
        self._declare_mechanisms(mechanisms)
        self.alignment_history = alignment_history
        self.cell_input_fn = cell_input_fn
        self.output_attention = output_attention
        self.initial_cell_state = initial_cell_state
        self.attention_fn = attention_fn
        self.output_alignments = output_alignments
        layers = _read_layers(attention_layer_size, attention_layer, len(mechanisms), device, dtype)
        self._layer_names = ["attention_layer" + (f"_{k}" if k else "") for k in range(len(layers))]
        for name, layer in zip(self._layer_names, layers):
            self.add_module(name, layer)

    @property
    def mechanisms(self) -> list[AttentionMechanism]:
        return list(self.attention_mechanisms) if self.several else [self.attention_mechanism]  # type: ignore[list-item]

    @property
    def attention_size(self) -> int:
        """A, the width of the attention."""
        if self._layer_names:
            return sum(_width_of(getattr(self, name)) for name in self._layer_names)
        return sum(mechanism.values_size for mechanism in self.mechanisms)

    @property
    def output_size(self) -> Any:
        size: Any = self.attention_size if self.output_attention else output_size_of(self.cell)
        return AttentionOutput(size, self._alignment_sizes()) if self.output_alignments else size

    @property
    def declares_state(self) -> bool:
        return self.initial_cell_state is not None or declares_state(self.cell)

    @property
    def state_size(self) -> Any:
        sizes = self._alignment_sizes()
        width: Any = self.attention_size
        return AttentionWrapperState(state_size_of(self.cell), width, sizes, (), sizes)

    def initial_state(
        self, batch_size: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> AttentionWrapperState:
        for mechanism in self.mechanisms:
            mechanism.check_rows(batch_size)
        cell_state = self.initial_cell_state
        if cell_state is None:
            cell_state = initial_state_of(self.cell, batch_size, dtype, device)
        else:
            _check_start(cell_state, batch_size)
        return AttentionWrapperState(
            cell_state,
            torch.zeros(batch_size, self.attention_size, dtype=dtype, device=device),
            self._item_or_tuple([m.initial_alignments(batch_size, dtype, device) for m in self.mechanisms]),
            (),
            self._item_or_tuple([m.initial_state(batch_size, dtype, device) for m in self.mechanisms]),
        )

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> AttentionConsts:
        inner = row_consts_of(self.cell, batch_size, dtype, device)
        return AttentionConsts(inner, tuple(m.row_consts(batch_size, dtype, device) for m in self.mechanisms))

    def forward(self, inputs: Nested, state: Nested, row_consts: Nested = ()) -> tuple[Nested, AttentionWrapperState]:
        if not isinstance(state, AttentionWrapperState):
            raise TypeError(
                f"AttentionWrapper: the state is an AttentionWrapperState, got a {type(state).__name__}. Start from "
                f"cell.initial_state(batch_size), and put an encoder's state in with .clone(cell_state=state)."
            )
        if not leaves(row_consts):
            row_consts = self.row_consts(state.attention.shape[0], state.attention.dtype, state.attention.device)
        inner, memories = row_consts
        mixed = (self.cell_input_fn or _concatenate)(inputs, state.attention)
        output, cell_state = call_cell(self.cell, mixed, state.cell_state, inner)
        attentions, alignments, attention_states = self._attend(output, state.attention_state, memories)
        attention = attentions[0] if len(attentions) == 1 else torch.cat(attentions, 1)
        alignments = self._item_or_tuple(alignments)
        next_state = AttentionWrapperState(cell_state, attention, alignments, (), self._item_or_tuple(attention_states))
        output = attention if self.output_attention else output
        return (AttentionOutput(output, alignments) if self.output_alignments else output), next_state

    def extra_repr(self) -> str:
        names = ("alignment_history", "output_attention", "output_alignments")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _attend(
        self, output: Tensor, states: Nested, memories: tuple[Memory, ...]
    ) -> tuple[list[Tensor], list[Tensor], list[Nested]]:
        """(attentions, alignments, next states), one of each for each mechanism."""
        states = states if self.several else [states]
        layers = [getattr(self, name) for name in self._layer_names] or [None] * len(memories)
        attend = self.attention_fn or compute_attention
        read = [attend(*each) for each in zip(self.mechanisms, [output] * len(memories), states, layers, memories)]
        attentions, alignments, next_states = (list(column) for column in zip(*read))
        return attentions, alignments, next_states

    def _declare_mechanisms(self, mechanisms: list[AttentionMechanism]) -> None:
        if not mechanisms:
            raise ValueError("AttentionWrapper: at least one attention mechanism is needed, got an empty list.")
        for mechanism in mechanisms:
            if not isinstance(mechanism, AttentionMechanism):
                raise TypeError(
                    f"AttentionWrapper: attention_mechanism must be an AttentionMechanism or a list of them, got a "
                    f"{type(mechanism).__name__}. Use LuongAttention or BahdanauAttention, or subclass the mechanism."
                )
        if self.several:
            self.attention_mechanisms = nn.ModuleList(mechanisms)
        else:
            self.attention_mechanism = mechanisms[0]

    def _alignment_sizes(self) -> Any:
        return self._item_or_tuple([mechanism.alignments_size for mechanism in self.mechanisms])

    def _item_or_tuple(self, values: list[Any]) -> Any:
        return tuple(values) if self.several else values[0]


def compute_attention(
    mechanism: AttentionMechanism, output: Tensor, state: Nested, layer: nn.Module | None, memory: Memory
) -> tuple[Tensor, Tensor, Nested]:
    """The default `attention_fn`: (attention [B, A], alignments [B, M], next state)."""
    alignments, next_state = mechanism(output, state, memory)
    context = (alignments.unsqueeze(1) @ memory.values).squeeze(1)
    if layer is None:
        return context, alignments, next_state
    return layer(torch.cat([output, context], 1)), alignments, next_state


def _concatenate(inputs: Tensor, attention: Tensor) -> Tensor:
    return torch.cat([inputs, attention], -1)


def _read_layers(
    sizes: int | Sequence[int] | None, layers: Any, count: int, device: Any, dtype: torch.dtype | None
) -> list[nn.Module]:
    if sizes is not None and layers is not None:
        raise ValueError("AttentionWrapper: only one of attention_layer_size and attention_layer should be set.")
    given = sizes if sizes is not None else layers
    if given is None:
        return []
    listed: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(listed) != count:
        raise ValueError(
            f"AttentionWrapper: one attention layer per mechanism: got {len(listed)} for {count} mechanisms. "
            f"Pass a list of {count}."
        )
    if sizes is None:
        return listed
    name = "AttentionWrapper.attention_layer"
    return [Dense(read_units("attention_layer_size", size), name=name, device=device, dtype=dtype) for size in listed]


def _width_of(layer: nn.Module) -> int:
    for name in ("out_features", "units"):
        if isinstance(width := getattr(layer, name, None), int):
            return width
    raise TypeError(
        f"AttentionWrapper: the width of attention_layer {type(layer).__name__} is not known. "
        f"Give it an attribute out_features."
    )


def _check_start(state: Nested, batch_size: int) -> None:
    for path, leaf in leaves_with_paths(state, "initial_cell_state"):
        if leaf.shape[0] != batch_size:
            raise ValueError(
                f"AttentionWrapper: {path} has {leaf.shape[0]} rows, the batch has {batch_size}. For "
                f"BeamSearchDecoder tile the state as well as the memory, tile_batch(state, beam_width)."
            )


def _check_same(name: str, old: Nested, new: Nested) -> None:
    alike = same_structure(old, new) and all(a.shape == b.shape for a, b in zip(leaves(old), leaves(new)))
    if not alike:
        shapes = [map_leaves(lambda leaf: list(leaf.shape), value) for value in (old, new)]
        raise ValueError(
            f"AttentionWrapperState.clone: {name} must keep its structure and shapes: expected {shapes[0]}, got "
            f"{shapes[1]}. The encoder's state must be that of the cell inside."
        )
