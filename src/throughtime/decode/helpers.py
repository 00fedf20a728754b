"""A step's outputs -> the token taken, and what is fed next: teacher forcing, feedback, and what lies between.

Source: TensorFlow 1.15, contrib/seq2seq/python/ops/helper.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime._nested import Nested, leaves, map_leaves
from throughtime._sequence import read_lengths
from throughtime.decode.noise import Noise
from throughtime.decode.sampling import check_sampling, draw
from throughtime.decode.tokens import check_logits, read_embedding, read_end_token, read_tokens

__all__ = [
    "CustomHelper",
    "GreedyEmbeddingHelper",
    "Helper",
    "InferenceHelper",
    "SampleEmbeddingHelper",
    "ScheduledEmbeddingTrainingHelper",
    "ScheduledOutputTrainingHelper",
    "TrainingHelper",
]

Next = tuple[Tensor, Nested, Nested]


class Helper:
    """What `BasicDecoder` asks between steps.

    Attributes:
        drops_rows: whether the methods take `rows=`, the rows of the batch that the outputs are for, so that finished
            rows can be left out. A helper that does not say so sees all rows at every step.
    """

    drops_rows = False

    @property
    def batch_size(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must say its batch_size")

    def initialize(self) -> tuple[Tensor, Nested]:
        """(finished bool [B], the first inputs)."""
        raise NotImplementedError(f"{type(self).__name__} must write initialize()")

    def sample(self, time: int, outputs: Nested, state: Nested) -> Tensor:
        """The outputs of a step -> sample ids [B]."""
        raise NotImplementedError(f"{type(self).__name__} must write sample(time, outputs, state)")

    def next_inputs(self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor) -> Next:
        """-> (finished bool [B], inputs of step time + 1, state)."""
        raise NotImplementedError(f"{type(self).__name__} must write next_inputs(time, outputs, state, sample_ids)")


class CustomHelper(Helper):
    """A helper of three functions.

    Args:
        initialize_fn: () -> (finished, inputs).
        sample_fn: (time, outputs, state) -> sample ids.
        next_inputs_fn: (time, outputs, state, sample_ids) -> (finished, inputs, state).
        sample_ids_shape, sample_ids_dtype: of one row's sample, checked if given; by default a scalar of any dtype.
    """

    def __init__(
        self,
        initialize_fn: Callable[[], tuple[Tensor, Nested]],
        sample_fn: Callable[[int, Nested, Nested], Tensor],
        next_inputs_fn: Callable[[int, Nested, Nested, Tensor], Next],
        sample_ids_shape: Sequence[int] | None = None,
        sample_ids_dtype: torch.dtype | None = None,
    ) -> None:
        self._initialize_fn, self._sample_fn, self._next_inputs_fn = initialize_fn, sample_fn, next_inputs_fn
        self._shape = list(sample_ids_shape or ())
        self._dtype = sample_ids_dtype
        self._batch_size: int | None = None

    @property
    def batch_size(self) -> int:
        if self._batch_size is None:
            self.initialize()
        return self._batch_size  # type: ignore[return-value]

    def initialize(self) -> tuple[Tensor, Nested]:
        finished, inputs = self._initialize_fn()
        self._batch_size = finished.shape[0]
        return finished, inputs

    def sample(self, time: int, outputs: Nested, state: Nested) -> Tensor:
        return _checked_sample("CustomHelper", self._sample_fn(time, outputs, state), self._shape, self._dtype)

    def next_inputs(self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor) -> Next:
        return self._next_inputs_fn(time, outputs, state, sample_ids)


class InferenceHelper(Helper):
    """Feedback through functions of one's own: `inputs = next_inputs_fn(sample_fn(outputs))`.

    Args:
        sample_fn: outputs -> samples.
        sample_shape, sample_dtype: of one row's sample; None is any.
        start_inputs: [B, ...].
        end_fn: samples -> bool [B], which of them end their row.
        next_inputs_fn: samples -> inputs, by default the samples themselves.
    """

    def __init__(
        self,
        sample_fn: Callable[[Nested], Tensor],
        sample_shape: Sequence[int] | None,
        sample_dtype: torch.dtype | None,
        start_inputs: Tensor,
        end_fn: Callable[[Tensor], Tensor],
        next_inputs_fn: Callable[[Tensor], Nested] | None = None,
    ) -> None:
        self._sample_fn, self._end_fn, self._next_inputs_fn = sample_fn, end_fn, next_inputs_fn
        self._shape = None if sample_shape is None else list(sample_shape)
        self._dtype = sample_dtype
        self._start_inputs = start_inputs

    @property
    def batch_size(self) -> int:
        return leaves(self._start_inputs)[0].shape[0]

    def initialize(self) -> tuple[Tensor, Nested]:
        return _none_finished(self.batch_size, leaves(self._start_inputs)[0].device), self._start_inputs

    def sample(self, time: int, outputs: Nested, state: Nested) -> Tensor:
        return _checked_sample("InferenceHelper", self._sample_fn(outputs), self._shape, self._dtype)

    def next_inputs(self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor) -> Next:
        inputs = sample_ids if self._next_inputs_fn is None else self._next_inputs_fn(sample_ids)
        return self._end_fn(sample_ids), inputs, state


class TrainingHelper(Helper):
    """Teacher forcing: the inputs are given, whatever the outputs are; sample ids are the most probable tokens.

    Args:
        inputs: nested, [B, T, ...] in every leaf, or [T, B, ...] with `time_major`.
        sequence_length: [B], from 0 to T.

    (The same numbers as `dynamic_rnn(cell, inputs, sequence_length)`, which is faster.)
    """

    drops_rows = True

    def __init__(self, inputs: Nested, sequence_length: Any, time_major: bool = False) -> None:
        if not time_major:
            inputs = map_leaves(lambda leaf: leaf.transpose(0, 1), inputs)
        first: Tensor = leaves(inputs)[0]
        self._inputs, self._steps, self._device = inputs, first.shape[0], first.device
        lengths = read_lengths(sequence_length, first.shape[1], self._steps)
        self._lengths = torch.from_numpy(lengths).to(self._device)

    @property
    def batch_size(self) -> int:
        return self._lengths.shape[0]

    def initialize(self) -> tuple[Tensor, Nested]:
        return self._lengths == 0, self._read(self._inputs, 0, None)

    def sample(self, time: int, outputs: Nested, state: Nested, rows: Tensor | None = None) -> Tensor:
        check_logits(type(self).__name__, outputs, self.batch_size if rows is None else len(rows))
        return outputs.argmax(-1)

    def next_inputs(
        self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor, rows: Tensor | None = None
    ) -> Next:
        lengths = self._lengths if rows is None else self._lengths[rows]
        return lengths <= time + 1, self._read(self._inputs, time + 1, rows), state

    def _read(self, sequences: Nested, time: int, rows: Tensor | None) -> Nested:
        """The inputs of one step; zeros past the last, where every row has finished."""

        def read(leaf: Tensor) -> Tensor:
            step = leaf[time] if time < leaf.shape[0] else leaf.new_zeros(leaf.shape[1:])
            return step if rows is None else step.index_select(0, rows)

        return map_leaves(read, sequences)


class ScheduledEmbeddingTrainingHelper(TrainingHelper):
    """Teacher forcing, but now and then the model's own token is fed: `embedding(drawn from softmax(outputs))`.

    Args:
        inputs, sequence_length, time_major: as in `TrainingHelper`.
        embedding: a table [V, E] or a function of ids.
        sampling_probability: of feeding the model's own, from 0 to 1; a number, or one per row.
        seed: the same draws again; row by row, whatever else is in the batch.
        scheduling_seed: of where they are fed; by default made from `seed`.

    Sample ids are -1 where the given input is fed.

    Source: Bengio, Vinyals, Jaitly and Shazeer 2015, arXiv 1506.03099.
    """

    def __init__(
        self,
        inputs: Nested,
        sequence_length: Any,
        embedding: Any,
        sampling_probability: Any,
        time_major: bool = False,
        seed: int | None = None,
        scheduling_seed: int | None = None,
    ) -> None:
        super().__init__(inputs, sequence_length, time_major)
        self._embedding = read_embedding(type(self).__name__, embedding)
        self._probability = _read_probability(type(self).__name__, sampling_probability, self._lengths)
        if scheduling_seed is None and seed is not None:
            scheduling_seed = seed + 1
        self._noise = Noise(seed, self.batch_size, self._device)
        self._schedule = Noise(scheduling_seed, self.batch_size, self._device)

    def sample(self, time: int, outputs: Nested, state: Nested, rows: Tensor | None = None) -> Tensor:
        check_logits(
            type(self).__name__, outputs, self.batch_size if rows is None else len(rows), embedding=self._embedding
        )
        drawn = draw(outputs, self._noise.uniform(time, rows))
        return torch.where(_falls(self._schedule, self._probability, time, rows), drawn, -1)

    def next_inputs(
        self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor, rows: Tensor | None = None
    ) -> Next:
        finished, given, state = super().next_inputs(time, outputs, state, sample_ids, rows)
        own = self._embedding(sample_ids.clamp(min=0))
        return finished, _choose(sample_ids >= 0, own, given), state


class ScheduledOutputTrainingHelper(TrainingHelper):
    """Teacher forcing, but now and then the model's own output is fed, for outputs that are values, not logits.

    Args:
        inputs, sequence_length, time_major: as in `TrainingHelper`.
        sampling_probability: of feeding the model's own, from 0 to 1; a number, or one per row.
        seed: of where that is.
        next_inputs_fn: outputs -> inputs, by default the outputs themselves.
        auxiliary_inputs: nested like the inputs, concatenated to every input, given or the model's own.

    Sample ids are bool: where the model's own is fed.
    """

    def __init__(
        self,
        inputs: Nested,
        sequence_length: Any,
        sampling_probability: Any,
        time_major: bool = False,
        seed: int | None = None,
        next_inputs_fn: Callable[[Nested], Nested] | None = None,
        auxiliary_inputs: Nested = None,
    ) -> None:
        self._auxiliary = auxiliary_inputs
        if auxiliary_inputs is not None:
            inputs = map_leaves(_beside, inputs, auxiliary_inputs)
            if not time_major:
                self._auxiliary = map_leaves(lambda leaf: leaf.transpose(0, 1), auxiliary_inputs)
        super().__init__(inputs, sequence_length, time_major)
        self._probability = _read_probability(type(self).__name__, sampling_probability, self._lengths)
        self._schedule = Noise(seed, self.batch_size, self._device)
        self._next_inputs_fn = next_inputs_fn

    def sample(self, time: int, outputs: Nested, state: Nested, rows: Tensor | None = None) -> Tensor:
        return _falls(self._schedule, self._probability, time, rows)

    def next_inputs(
        self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor, rows: Tensor | None = None
    ) -> Next:
        finished, given, state = super().next_inputs(time, outputs, state, sample_ids, rows)
        own = outputs if self._next_inputs_fn is None else self._next_inputs_fn(outputs)
        if self._auxiliary is not None:
            own = map_leaves(_beside, own, self._read(self._auxiliary, time + 1, rows))
        return finished, map_leaves(lambda a, b: _choose(sample_ids, a, b), own, given), state


class GreedyEmbeddingHelper(Helper):
    """Feedback: the most probable token is taken, its embedding fed next, until it is `end_token`.

    Args:
        embedding: a table [V, E], an nn.Embedding, or a function of ids.
        start_tokens: [B].
        end_token: a whole number; within the vocabulary.
    """

    drops_rows = True

    def __init__(self, embedding: Any, start_tokens: Any, end_token: Any) -> None:
        name = type(self).__name__
        self._embedding = read_embedding(name, embedding)
        self._start_tokens = read_tokens(name, start_tokens, self._embedding)
        self._end_token = read_end_token(name, end_token)

    @property
    def batch_size(self) -> int:
        return self._start_tokens.shape[0]

    def initialize(self) -> tuple[Tensor, Nested]:
        return _none_finished(self.batch_size, self._start_tokens.device), self._embedding(self._start_tokens)

    def sample(self, time: int, outputs: Nested, state: Nested, rows: Tensor | None = None) -> Tensor:
        self._check(outputs, rows)
        return outputs.argmax(-1)

    def next_inputs(
        self, time: int, outputs: Nested, state: Nested, sample_ids: Tensor, rows: Tensor | None = None
    ) -> Next:
        return sample_ids == self._end_token, self._embedding(sample_ids), state

    def _check(self, outputs: Nested, rows: Tensor | None) -> None:
        count = self.batch_size if rows is None else len(rows)
        check_logits(type(self).__name__, outputs, count, self._end_token, self._embedding)


class SampleEmbeddingHelper(GreedyEmbeddingHelper):
    """Feedback with a token that is drawn from softmax(outputs / temperature).

    Args:
        embedding, start_tokens, end_token: as in `GreedyEmbeddingHelper`.
        softmax_temperature: above 0; by default 1.
        seed: the same draws again; a row draws the same whatever else is in the batch. By default one is drawn from
            PyTorch's generator.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities reach p together.
    """

    def __init__(
        self,
        embedding: Any,
        start_tokens: Any,
        end_token: Any,
        softmax_temperature: float | None = None,
        seed: int | None = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        super().__init__(embedding, start_tokens, end_token)
        temperature = 1.0 if softmax_temperature is None else softmax_temperature
        check_sampling("SampleEmbeddingHelper", temperature, top_k, top_p)
        self._options = (temperature, top_k, top_p)
        self._noise = Noise(seed, self.batch_size, self._start_tokens.device)

    def sample(self, time: int, outputs: Nested, state: Nested, rows: Tensor | None = None) -> Tensor:
        self._check(outputs, rows)
        return draw(outputs, self._noise.uniform(time, rows), *self._options)


def _none_finished(rows: int, device: torch.device) -> Tensor:
    return torch.zeros(rows, dtype=torch.bool, device=device)


def _read_probability(name: str, given: Any, lengths: Tensor) -> Tensor:
    probability = torch.as_tensor(given, dtype=torch.float64).to(lengths.device)
    if probability.dim() > 1:
        raise ValueError(
            f"{name}: sampling_probability must be either a scalar or a vector, got shape {list(probability.shape)}."
        )
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(f"{name}: sampling_probability must lie from 0 to 1, got {given}.")
    return probability.expand(lengths.shape)


def _falls(schedule: Noise, probability: Tensor, time: int, rows: Tensor | None) -> Tensor:
    """bool, true with the given probability."""
    return schedule.uniform(time, rows) < (probability if rows is None else probability[rows])


def _choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (yes.dim() - 1)), yes, no)


def _beside(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], -1)


def _checked_sample(name: str, sample: Tensor, shape: list[int] | None, dtype: torch.dtype | None) -> Tensor:
    if (shape is not None and list(sample.shape[1:]) != shape) or (dtype is not None and sample.dtype != dtype):
        raise ValueError(
            f"{name}: sample_fn must give {dtype or 'a tensor'} {['batch', *(shape or ['...'])]}, as was said to the "
            f"constructor; got {sample.dtype} {list(sample.shape)}."
        )
    return sample
