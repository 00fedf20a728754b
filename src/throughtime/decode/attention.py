"""A query and a memory -> weights over the memory's steps: Luong's and Bahdanau's attention, and their monotonic kinds.

Source: TensorFlow 1.15, contrib/seq2seq/attention_wrapper.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime._nested import Nested
from throughtime._sequence import read_lengths
from throughtime.cells._options import read_units
from throughtime.cells._parameters import Dense, glorot_uniform
from throughtime.decode.loss import sequence_mask
from throughtime.decode.monotonic import MONOTONIC_MODES, monotonic_attention

__all__ = [
    "AttentionMechanism",
    "BahdanauAttention",
    "BahdanauMonotonicAttention",
    "LuongAttention",
    "LuongMonotonicAttention",
    "Memory",
]

Probability = Callable[[Tensor], Tensor]
KeysAndValues = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Memory(NamedTuple):
    """What is attended to, one entry per row: the same for all steps of a call.

    keys: [B, M, U], what queries are compared with.
    values: [B, M, D], what is read; 0 past a row's length.
    mask: bool [B, M], true up to a row's length; () where every row is full.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | tuple[()] = ()


class AttentionMechanism(nn.Module):
    """Where to look: `weights, next_state = mechanism(query, state, memory)`. A subclass writes `score`.

    The memory belongs to a batch, the parameters do not: give each batch's memory to `set_memory`, or the first to the
    constructor. `row_consts` makes the keys of it, once a call.

    Args:
        num_units: the width U of keys and queries.
        memory: [B, M, D], most often the outputs of an encoder.
        memory_sequence_length: the steps of each row, at least 1; by default all M. Past them nothing is read, NaN
            included, and no weight falls.
        score_mask_value: the score past a row's length; by default minus infinity.
        custom_key_value_fn: (keys, values) -> (keys, values), after the memory layer.
        memory_size: D, by default found with the first memory.
    """

    def __init__(
        self,
        num_units: int,
        memory: Tensor | None = None,
        memory_sequence_length: Any = None,
        *,
        score_mask_value: float | None = None,
        custom_key_value_fn: KeysAndValues | None = None,
        memory_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_units = read_units("num_units", num_units)
        self.score_mask_value = -math.inf if score_mask_value is None else score_mask_value
        self.custom_key_value_fn = custom_key_value_fn
        name = f"{type(self).__name__}.memory_layer"
        self.memory_layer = Dense(num_units, name=name, input_size=memory_size, device=device, dtype=dtype)
        self.memory: Tensor | None = None
        self.memory_mask: Tensor | tuple[()] = ()
        if memory is not None:
            self.set_memory(memory, memory_sequence_length)

    def set_memory(self, memory: Tensor, memory_sequence_length: Any = None) -> None:
        """From now on attend to this memory [B, M, D]."""
        if not isinstance(memory, Tensor) or memory.dim() != 3:
            got = list(memory.shape) if isinstance(memory, Tensor) else f"a {type(memory).__name__}"
            raise ValueError(
                f"{type(self).__name__}: the memory is one tensor [batch, steps, features], got {got}. "
                f"Flatten further axes of features first."
            )
        rows, steps, _ = memory.shape
        if memory_sequence_length is None:
            self.memory, self.memory_mask = memory, ()
            return
        lengths = read_lengths(memory_sequence_length, rows, steps)
        if (lengths < 1).any():
            raise ValueError(
                f"{type(self).__name__}: all values in memory_sequence_length must be greater than zero: row "
                f"{int((lengths < 1).argmax())} has nothing to attend to. Leave such rows out of the batch."
            )
        mask = sequence_mask(torch.from_numpy(lengths).to(memory.device), steps)
        self.memory, self.memory_mask = memory.masked_fill(~mask[:, :, None], 0), mask

    @property
    def alignments_size(self) -> int:
        """M, the number of the memory's steps."""
        return self._memory().shape[1]

    @property
    def values_size(self) -> int:
        """D, the width of what is read."""
        if self.custom_key_value_fn is None:
            return self._memory().shape[-1]
        return self._read().values.shape[-1]

    def row_consts(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """The memory with its keys, for a call on a batch of `batch_size` rows."""
        self.check_rows(batch_size)
        return self._read()

    def check_rows(self, batch_size: int) -> None:
        rows = self._memory().shape[0]
        if rows != batch_size:
            raise ValueError(
                f"{type(self).__name__}: non-matching batch sizes: the memory has {rows} rows, the batch has "
                f"{batch_size}. Give this batch's memory to set_memory; for BeamSearchDecoder tile memory, lengths "
                f"and initial state first, tile_batch(memory, beam_width)."
            )

    def initial_alignments(self, batch_size: int, dtype: torch.dtype | None, device: Any) -> Tensor:
        """The weights "before the first step" [B, M]: zeros."""
        return torch.zeros(batch_size, self.alignments_size, dtype=dtype, device=device)

    def initial_state(self, batch_size: int, dtype: torch.dtype | None, device: Any) -> Nested:
        return self.initial_alignments(batch_size, dtype, device)

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        """query [B, Q], keys [B, M, U] -> [B, M], how well they fit."""
        raise NotImplementedError(f"{type(self).__name__} must write score(query, keys)")

    def choose(self, score: Tensor, state: Nested) -> Tensor:
        """Scores and the weights of the step before -> weights."""
        raise NotImplementedError(f"{type(self).__name__} must write choose(score, state)")

    def forward(self, query: Tensor, state: Nested, memory: Memory | None = None) -> tuple[Tensor, Nested]:
        """query [B, Q] -> (weights [B, M], next state). Without `memory` the one that was set, its keys made anew."""
        if memory is None:
            memory = self.row_consts(query.shape[0], query.dtype, query.device)
        score = self.score(query, memory.keys)
        if isinstance(memory.mask, Tensor):
            score = torch.where(memory.mask, score, self.score_mask_value)
        alignments = self.choose(score, state)
        return alignments, alignments

    def _memory(self) -> Tensor:
        if self.memory is None:
            raise ValueError(
                f"{type(self).__name__}: there is no memory to attend to yet. "
                f"Call set_memory(memory, memory_sequence_length) before the first step."
            )
        return self.memory

    def _read(self) -> Memory:
        values = self._memory()
        keys = self.memory_layer(values)
        if self.custom_key_value_fn is not None:
            keys, values = self.custom_key_value_fn(keys, values)
        return Memory(keys, values, self.memory_mask)


class _LuongScore(AttentionMechanism):
    attention_g: Tensor | None

    def _declare_score(self, scale: bool, device: Any, dtype: torch.dtype | None) -> None:
        one = nn.Parameter(torch.ones((), device=device, dtype=dtype)) if scale else None
        self.register_parameter("attention_g", one)

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        if query.shape[-1] != keys.shape[-1]:
            raise ValueError(
                f"{type(self).__name__}: the query must be as wide as the keys: the cell's output has "
                f"{query.shape[-1]} features, num_units is {keys.shape[-1]}. Set num_units={query.shape[-1]}."
            )
        score = (keys @ query.unsqueeze(-1)).squeeze(-1)
        return score if self.attention_g is None else self.attention_g * score


class _BahdanauScore(AttentionMechanism):
    attention_v: Tensor
    attention_g: Tensor | None
    attention_b: Tensor | None

    def _declare_score(self, normalize: bool, query_size: int | None, device: Any, dtype: torch.dtype | None) -> None:
        units = self.num_units
        name = f"{type(self).__name__}.query_layer"
        self.query_layer = Dense(units, name=name, input_size=query_size, device=device, dtype=dtype)
        self.attention_v = nn.Parameter(torch.empty(units, device=device, dtype=dtype))
        glorot_uniform(self.attention_v)
        g = torch.full((), math.sqrt(1 / units), device=device, dtype=dtype)
        b = torch.zeros(units, device=device, dtype=dtype)
        self.register_parameter("attention_g", nn.Parameter(g) if normalize else None)
        self.register_parameter("attention_b", nn.Parameter(b) if normalize else None)

    def score(self, query: Tensor, keys: Tensor) -> Tensor:
        query = self.query_layer(query).unsqueeze(1)
        v = self.attention_v
        if self.attention_g is None or self.attention_b is None:
            return (v * torch.tanh(keys + query)).sum(-1)
        v = self.attention_g * v * v.square().sum().rsqrt()
        return (v * torch.tanh(keys + query + self.attention_b)).sum(-1)


class _Softmax(AttentionMechanism):
    probability_fn: Probability | None

    def choose(self, score: Tensor, state: Nested) -> Tensor:
        return torch.softmax(score, -1) if self.probability_fn is None else self.probability_fn(score)


class _Monotonic(AttentionMechanism):
    attention_score_bias: Tensor
    mode: str
    sigmoid_noise: float

    def _declare_choice(
        self, mode: str, sigmoid_noise: float, score_bias_init: float, device: Any, dtype: torch.dtype | None
    ) -> None:
        if mode not in MONOTONIC_MODES:
            raise ValueError(f"{type(self).__name__}: mode must be one of {', '.join(MONOTONIC_MODES)}, got {mode!r}.")
        if sigmoid_noise < 0:
            raise ValueError(f"{type(self).__name__}: sigmoid_noise must be at least 0, got {sigmoid_noise}.")
        self.mode, self.sigmoid_noise = mode, sigmoid_noise
        self.attention_score_bias = nn.Parameter(torch.full((), float(score_bias_init), device=device, dtype=dtype))

    def initial_alignments(self, batch_size: int, dtype: torch.dtype | None, device: Any) -> Tensor:
        """All weight on the memory's first step, where a monotonic attention sets out."""
        first = torch.zeros(batch_size, self.alignments_size, dtype=dtype, device=device)
        first[:, 0] = 1
        return first

    def choose(self, score: Tensor, state: Nested) -> Tensor:
        score = score + self.attention_score_bias
        if self.sigmoid_noise > 0 and self.training:
            score = score + self.sigmoid_noise * torch.randn_like(score)
        chosen = (score > 0).to(score.dtype) if self.mode == "hard" else torch.sigmoid(score)
        return monotonic_attention(chosen, state, self.mode)


class LuongAttention(_LuongScore, _Softmax):
    """Weights by the inner product of query and key::

        weights = softmax(g * keys @ query)          # g, a parameter that starts at 1, with scale=True; else 1

    Args:
        num_units: the width of keys, which must be the query's: the output size of the cell.
        scale: whether to scale the scores by a parameter.
        probability_fn: scores -> weights, by default softmax; `hardmax` for example.
        memory and further arguments: see `AttentionMechanism`.

    Parameters: `memory_layer.kernel` [D, U], `attention_g` [].

    Source: Luong, Pham and Manning 2015, arXiv 1508.04025, equation 8 ("general").

    >>> import torch, throughtime
    >>> attention = throughtime.LuongAttention(4, torch.randn(2, 5, 3), [5, 2])
    >>> weights, _ = attention(torch.randn(2, 4), attention.initial_state(2, torch.float32, None))
    >>> weights.shape, bool((weights[1, 2:] == 0).all())
    (torch.Size([2, 5]), True)
    """

    def __init__(
        self,
        num_units: int,
        memory: Tensor | None = None,
        memory_sequence_length: Any = None,
        scale: bool = False,
        probability_fn: Probability | None = None,
        score_mask_value: float | None = None,
        dtype: torch.dtype | None = None,
        custom_key_value_fn: KeysAndValues | None = None,
        *,
        memory_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            num_units,
            memory,
            memory_sequence_length,
            score_mask_value=score_mask_value,
            custom_key_value_fn=custom_key_value_fn,
            memory_size=memory_size,
            device=device,
            dtype=dtype,
        )
        self.probability_fn = probability_fn
        self._declare_score(scale, device, dtype)


class BahdanauAttention(_BahdanauScore, _Softmax):
    """Weights by a small network of query and key::

        weights = softmax(sum(v * tanh(keys + query @ query_layer.kernel)))

    normalized: `v` becomes `g * v / norm(v)`, and a bias is added inside the tanh.

    Args:
        num_units: the width of keys and projected queries.
        normalize: whether to normalise `v`; `g` starts at sqrt(1 / num_units), the bias at 0.
        probability_fn: scores -> weights, by default softmax.
        query_size: the width of queries, by default found at the first call.
        memory and further arguments: see `AttentionMechanism`.

    Parameters: `memory_layer.kernel` [D, U], `query_layer.kernel` [Q, U], `attention_v` [U], `attention_g` [],
    `attention_b` [U].

    Source: Bahdanau, Cho and Bengio 2015, arXiv 1409.0473, appendix A.1.2; normalised: Salimans and Kingma 2016,
    arXiv 1602.07868, equation 2.

    >>> import torch, throughtime
    >>> attention = throughtime.BahdanauAttention(4, torch.randn(2, 5, 3))
    >>> weights, _ = attention(torch.randn(2, 7), attention.initial_state(2, torch.float32, None))
    >>> bool(torch.allclose(weights.sum(1), torch.ones(2)))
    True
    """

    def __init__(
        self,
        num_units: int,
        memory: Tensor | None = None,
        memory_sequence_length: Any = None,
        normalize: bool = False,
        probability_fn: Probability | None = None,
        score_mask_value: float | None = None,
        dtype: torch.dtype | None = None,
        custom_key_value_fn: KeysAndValues | None = None,
        *,
        memory_size: int | None = None,
        query_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            num_units,
            memory,
            memory_sequence_length,
            score_mask_value=score_mask_value,
            custom_key_value_fn=custom_key_value_fn,
            memory_size=memory_size,
            device=device,
            dtype=dtype,
        )
        self.probability_fn = probability_fn
        self._declare_score(normalize, query_size, device, dtype)


class LuongMonotonicAttention(_Monotonic, _LuongScore):
    """Luong's scores, weights that only move forwards: `monotonic_attention(sigmoid(score + bias), previous, mode)`.

    Args:
        scale: as in `LuongAttention`.
        sigmoid_noise: the standard deviation of noise on the scores while training, which teaches the scores to be
            large and the choice to be hard. (TensorFlow adds it always.)
        score_bias_init: what `attention_score_bias` starts at; below 0 for long memories.
        mode: "parallel", "recursive" or "hard", see `monotonic_attention`. Train soft, decode hard.
        memory and further arguments: see `AttentionMechanism`.

    Parameters: `memory_layer.kernel` [D, U], `attention_g` [], `attention_score_bias` [].

    Source: Raffel et al. 2017, arXiv 1704.00784.
    """

    def __init__(
        self,
        num_units: int,
        memory: Tensor | None = None,
        memory_sequence_length: Any = None,
        scale: bool = False,
        score_mask_value: float | None = None,
        sigmoid_noise: float = 0.0,
        score_bias_init: float = 0.0,
        mode: str = "parallel",
        dtype: torch.dtype | None = None,
        *,
        memory_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            num_units,
            memory,
            memory_sequence_length,
            score_mask_value=score_mask_value,
            memory_size=memory_size,
            device=device,
            dtype=dtype,
        )
        self._declare_score(scale, device, dtype)
        self._declare_choice(mode, sigmoid_noise, score_bias_init, device, dtype)


class BahdanauMonotonicAttention(_Monotonic, _BahdanauScore):
    """Bahdanau's scores, weights that only move forwards.

    Arguments as in `LuongMonotonicAttention`, with `normalize` and `query_size` of `BahdanauAttention`.

    Parameters: those of `BahdanauAttention` and `attention_score_bias` [].

    Source: Raffel et al. 2017, arXiv 1704.00784.
    """

    def __init__(
        self,
        num_units: int,
        memory: Tensor | None = None,
        memory_sequence_length: Any = None,
        normalize: bool = False,
        score_mask_value: float | None = None,
        sigmoid_noise: float = 0.0,
        score_bias_init: float = 0.0,
        mode: str = "parallel",
        dtype: torch.dtype | None = None,
        *,
        memory_size: int | None = None,
        query_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            num_units,
            memory,
            memory_sequence_length,
            score_mask_value=score_mask_value,
            memory_size=memory_size,
            device=device,
            dtype=dtype,
        )
        self._declare_score(normalize, query_size, device, dtype)
        self._declare_choice(mode, sigmoid_noise, score_bias_init, device, dtype)
