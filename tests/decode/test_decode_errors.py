"""Bad input to decoding: an error that says the rule, before the work where that can be known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import GRUCell, MultiRNNCell
from throughtime._errors import SequenceError, StateError
from throughtime.decode import (
    AttentionMechanism,
    AttentionWrapper,
    BahdanauAttention,
    BasicDecoder,
    Beam,
    BeamSearchDecoder,
    CustomHelper,
    Greedy,
    GreedyEmbeddingHelper,
    InferenceHelper,
    LuongAttention,
    LuongMonotonicAttention,
    Sample,
    SampleEmbeddingHelper,
    ScheduledEmbeddingTrainingHelper,
    ScheduledOutputTrainingHelper,
    TrainingHelper,
    dynamic_decode,
    gather_tree,
    generate,
    generate_stream,
    monotonic_attention,
    sequence_loss,
    sequence_mask,
    tile_batch,
)

torch.manual_seed(0)
TABLE, LAYER = torch.randn(7, 3), nn.Linear(5, 7)
X, MEMORY = torch.randn(3, 4, 3), torch.randn(3, 6, 4)
LONG = torch.long


def go(**changes: Any) -> Callable[[], Any]:
    given: dict[str, Any] = {"start": [1, 1, 1], "eos": 0, "embed": TABLE, "output_layer": LAYER, "max_steps": 4}
    return lambda: generate(changes.pop("cell", GRUCell(5)), **(given | changes))


def attend(**options: Any) -> Callable[[], AttentionWrapper]:
    return lambda: AttentionWrapper(GRUCell(5), LuongAttention(5, MEMORY), **options)


def ready(**options: Any) -> AttentionWrapper:
    return attend(**options)()


def beam(**changes: Any) -> Callable[[], BeamSearchDecoder]:
    given = {"cell": GRUCell(5), "embedding": TABLE, "start_tokens": [1, 2], "end_token": 0}
    given |= {"initial_state": torch.zeros(6, 5), "beam_width": 3, "output_layer": LAYER}
    return lambda: BeamSearchDecoder(**(given | changes))


def decode(decoder: Any, **options: Any) -> Callable[[], Any]:
    return lambda: dynamic_decode(decoder() if callable(decoder) else decoder, **options)


def basic(helper: Any, **options: Any) -> BasicDecoder:
    return BasicDecoder(GRUCell(5), helper, **({"output_layer": LAYER} | options))


def loss(logits: Any = (2, 3, 4), targets: Any = (2, 3), weights: Any = (2, 3), *flags: bool) -> Callable[[], Any]:
    return lambda: sequence_loss(torch.zeros(logits), torch.zeros(targets, dtype=LONG), torch.ones(weights), *flags)


def forbid(ids: Tensor, logits: Tensor) -> Tensor:
    changed = logits.clone()
    if ids.shape[1] == 2:
        changed[1] = -torch.inf
    return changed


BAD: list[tuple[type[Exception], str, Callable[[], Any]]] = [
    # generate
    (ValueError, "the end token must be in the vocabulary: the logits are for 7 tokens", go(eos=7)),
    (ValueError, "the end token is 9", go(eos=9, output_layer=lambda output: LAYER(output))),
    (ValueError, "without an end token it never ends", go(eos=None, max_steps=None)),
    (ValueError, "max_steps must be a whole number of at least 1, got 0", go(max_steps=0)),
    (ValueError, "max_steps must be a whole number of at least 1, got 2.5", go(max_steps=2.5)),
    (ValueError, "end_token must be a scalar, one whole number; got", go(eos=[0, 1])),
    (ValueError, "end_token must be at least 0, got -1", go(eos=torch.tensor(-1))),
    (ValueError, "prompts must not be empty, and row 1's is", go(start=[[1], [], [2]])),
    (ValueError, "must not be empty, and row 2's is", go(start=torch.ones(3, 2, dtype=LONG), start_length=[2, 1, 0])),
    (SequenceError, "row 0 has length 3", go(start=torch.ones(3, 2, dtype=LONG), start_length=[3, 1, 1])),
    (ValueError, r"start\[2, 0\] is out of range: ids are between 0 and 6", go(start=[1, 1, 7])),
    (ValueError, r"start\[0, 1\] is out of range: ids are at least 0",
     go(start=[[1, -2]], embed=lambda ids: TABLE[ids])),
    (ValueError, r"start_length is for prompts \[B, P\]; start has one token per row", go(start_length=[1, 1, 1])),
    (ValueError, "start_length is for padded prompts", go(start=[[1], [2]], start_length=[1, 1])),
    (ValueError, r"a prompt is a list of tokens; row 1 has shape \[1, 2\]", go(start=[[1], [[2, 3]]])),
    (ValueError, r"start must be a token, a token per row", go(start=torch.ones(2, 2, 2, dtype=LONG))),
    (TypeError, "start must be token ids, whole numbers; got torch.float32", go(start=[1.0, 2.0])),
    (ValueError, "every token that can be chosen is fed back: the logits are for 7 tokens", go(embed=TABLE[:5])),
    (TypeError, r"embedding must be a table .* got a tensor \[7\]", go(embed=TABLE[:, 0])),
    (TypeError, "embedding must be a table .* got a int", go(embed=3)),
    (TypeError, r"expected outputs to be one tensor of logits, \[3, vocabulary\]; got \[3, 1, 5\]",
     go(output_layer=lambda output: output[:, None])),
    (TypeError, "expected outputs to be one tensor of logits.*got a tuple", go(output_layer=lambda output: (output,))),
    (ValueError, "the constraint forbids every token, at step 2 of row 1", go(constraint=forbid, eos=None)),
    (ValueError, "the constraint forbids every token, at step 2 of row 0",
     go(constraint=forbid, strategy=Beam(3), start=[1], eos=None)),
    (ValueError, r"must return logits of the shape it gets, \[3, 7\]; got \[3\]",
     go(constraint=lambda ids, x: x[:, 0])),
    (ValueError, "must return logits of the shape it gets.*got a NoneType", go(constraint=lambda ids, x: None)),
    (TypeError, "generate: constraint must be callable, got a int", go(constraint=3)),
    (TypeError, "generate: output_layer must be callable, got a int", go(output_layer=3)),
    (TypeError, "generate: cell must be callable, got a str", go(cell="gru")),
    (TypeError, "strategy must be Greedy", go(strategy=Greedy)),
    (StateError, "initial_state must be", go(initial_state=torch.zeros(2, 5))),
    (StateError, "initial_state must have the sizes", go(initial_state=torch.zeros(3, 4))),
    (ValueError, "alignments=True needs an attention cell", go(alignments=True)),
    (ValueError, "a coverage penalty must be 0 if no cell is attentional", go(strategy=Beam(2, coverage_penalty=0.1))),
    (ValueError, "a beam search has no tokens before its end",
     lambda: generate_stream(GRUCell(5), [1], 0, embed=TABLE, strategy=Beam(2))),  # type: ignore[arg-type]
    (ValueError, "it never ends", lambda: generate_stream(GRUCell(5), [1], None, embed=TABLE)),
    (TypeError, "strategy must be Greedy",
     lambda: generate_stream(GRUCell(5), [1], 0, embed=TABLE, strategy=None)),  # type: ignore[arg-type]
    # strategies
    (ValueError, "Sample: temperature must be above 0, got 0", lambda: Sample(temperature=0)),
    (ValueError, "temperature must be above 0, got inf", lambda: Sample(temperature=float("inf"))),
    (ValueError, "top_k must be a whole number of at least 1, got 0", lambda: Sample(top_k=0)),
    (ValueError, "top_p must be above 0 and at most 1, got 1.5", lambda: Sample(top_p=1.5)),
    (ValueError, "seed must be a whole number, got 'x'", lambda: Sample(seed="x")),  # type: ignore[arg-type]
    (ValueError, "Beam: width must be a whole number of at least 1, got 0", lambda: Beam(0)),
    (ValueError, "a penalty must be at least 0, got length_penalty=-1", lambda: Beam(2, length_penalty=-1)),
    (ValueError, "a penalty must be at least 0, got coverage_penalty", lambda: Beam(2, coverage_penalty=float("nan"))),
    # dynamic_decode
    (TypeError, "decoder must be a Decoder, got a int", decode(3)),
    (ValueError, "maximum_iterations must be a scalar", decode(beam(), maximum_iterations=[3])),
    (ValueError, "maximum_iterations must be a scalar", decode(beam(), maximum_iterations=-1)),
    (ValueError, "zeroes the parents of finished beams", decode(beam(), impute_finished=True)),
    # decoders and helpers
    (TypeError, "helper must be a Helper, got a str", lambda: basic("greedy")),
    (TypeError, "BasicDecoder: output_layer must be callable",
     lambda: basic(TrainingHelper(X, [1] * 3), output_layer=3)),
    (StateError, "initial_state must be",
     decode(lambda: basic(TrainingHelper(X, [1] * 3), initial_state=torch.zeros(2, 5)))),
    (SequenceError, "must be a vector", lambda: TrainingHelper(X, 4)),
    (SequenceError, "row 1 has length 9", lambda: TrainingHelper(X, [1, 9, 2])),
    (TypeError, "TrainingHelper: expected outputs to be one tensor of logits",
     decode(lambda: basic(TrainingHelper(X, [1] * 3), output_layer=lambda output: (output,)))),
    (ValueError, "start_tokens must be a vector", lambda: GreedyEmbeddingHelper(TABLE, [[1]], 0)),
    (ValueError, r"start_tokens\[1\] is out of range", lambda: GreedyEmbeddingHelper(TABLE, [1, 9], 0)),
    (ValueError, "end_token must be a scalar", lambda: GreedyEmbeddingHelper(TABLE, [1], [0])),
    (ValueError, "end_token must be a scalar", lambda: GreedyEmbeddingHelper(TABLE, [1], True)),
    (ValueError, "GreedyEmbeddingHelper: the end token must be in the vocabulary",
     decode(lambda: basic(GreedyEmbeddingHelper(TABLE, [1], 8)))),
    (ValueError, "GreedyEmbeddingHelper: every token that can be chosen",
     decode(lambda: basic(GreedyEmbeddingHelper(TABLE[:4], [1], 0)))),
    (ValueError, "SampleEmbeddingHelper: temperature must be", lambda: SampleEmbeddingHelper(TABLE, [1], 0, 0.0)),
    (ValueError, "sampling_probability must be either a scalar or a vector",
     lambda: ScheduledEmbeddingTrainingHelper(X, [1] * 3, TABLE, [[0.5]])),
    (ValueError, "sampling_probability must lie from 0 to 1, got 1.5",
     lambda: ScheduledOutputTrainingHelper(X, [1] * 3, 1.5)),
    (ValueError, "InferenceHelper: sample_fn must give torch.int64",
     decode(lambda: basic(InferenceHelper(lambda x: x, [7], LONG, X[:, 0], lambda ids: ids[:, 0] > 0)))),
    (ValueError, "CustomHelper: sample_fn must give a tensor",
     decode(lambda: basic(CustomHelper(lambda: (torch.zeros(3, dtype=torch.bool), X[:, 0]), lambda t, x, s: x, None)))),  # type: ignore[arg-type]
    # beam search
    (ValueError, r"initial_state must have 6 rows, one per beam .* got \[2, 5\]",
     beam(initial_state=torch.zeros(2, 5))),
    (ValueError, "beam_width must be a whole number of at least 1", beam(beam_width=0)),
    (TypeError, "BeamSearchDecoder: output_layer must be callable", beam(output_layer=3)),
    (ValueError, "BeamSearchDecoder: start_tokens must be a vector", beam(start_tokens=1)),
    (ValueError, "BeamSearchDecoder: a coverage penalty must be 0", decode(beam(coverage_penalty_weight=0.2))),
    (ValueError, "BeamSearchDecoder: the end token must be in the vocabulary", decode(beam(end_token=7))),
    (ValueError, r"must both be \[steps, batch, beams\]",
     lambda: gather_tree(torch.zeros(2, 3), torch.zeros(2, 3), [1], 0)),
    (ValueError, "max_sequence_lengths must have one entry per row",
     lambda: gather_tree(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), [1], 0)),
    (ValueError, "multiplier must be a whole number", lambda: tile_batch(X, 0)),
    (ValueError, "value must be a tensor with rows", lambda: tile_batch(3, 2)),
    # attention
    (ValueError, r"the memory is one tensor .* got \[3, 6\]", lambda: LuongAttention(5, MEMORY[:, :, 0])),
    (ValueError, r"the memory is one tensor .* got a list",
     lambda: LuongAttention(5, [MEMORY])),  # type: ignore[arg-type]
    (ValueError, "must be greater than zero: row 1 has nothing", lambda: LuongAttention(5, MEMORY, [6, 0, 2])),
    (SequenceError, "row 2 has length 7", lambda: LuongAttention(5, MEMORY, [6, 1, 7])),
    (ValueError, "there is no memory to attend to yet",
     lambda: AttentionWrapper(GRUCell(5), LuongAttention(5)).state_size),
    (ValueError, "the memory has 3 rows, the batch has 6", lambda: ready().initial_state(6)),
    (ValueError, "the memory has 3 rows, the batch has 6",
     lambda: ready()(torch.randn(6, 3), ready().initial_state(3)._replace(attention=torch.zeros(6, 4)))),
    (ValueError, "the query must be as wide as the keys",
     lambda: AttentionWrapper(GRUCell(6), LuongAttention(5, MEMORY))(
         X[:, 0], AttentionWrapper(GRUCell(6), LuongAttention(5, MEMORY)).initial_state(3))),
    (ValueError, "num_units must be a whole number", lambda: BahdanauAttention(0, MEMORY)),
    (ValueError, "LuongMonotonicAttention: mode must be one of recursive",
     lambda: LuongMonotonicAttention(5, MEMORY, mode="soft")),
    (ValueError, "sigmoid_noise must be at least 0", lambda: LuongMonotonicAttention(5, MEMORY, sigmoid_noise=-1)),
    (ValueError, "monotonic_attention: mode must be", lambda: monotonic_attention(X[0], X[0], "soft")),
    (NotImplementedError, r"must write score\(query, keys\)", lambda: AttentionMechanism(5).score(X, X)),
    (NotImplementedError, r"must write choose\(score, state\)", lambda: AttentionMechanism(5).choose(X, X)),
    (TypeError, "AttentionWrapper: cell must be callable", lambda: AttentionWrapper(3, LuongAttention(5))),
    (TypeError, "cell_input_fn must be callable, got a int", attend(cell_input_fn=3)),
    (TypeError, "attention_fn must be callable, got a int", attend(attention_fn=3)),
    (TypeError, "must be an AttentionMechanism or a list of them, got a GRUCell",
     lambda: AttentionWrapper(GRUCell(5), GRUCell(5))),  # type: ignore[arg-type]
    (ValueError, "at least one attention mechanism is needed", lambda: AttentionWrapper(GRUCell(5), [])),
    (ValueError, "only one of attention_layer_size and attention_layer",
     attend(attention_layer_size=3, attention_layer=nn.Linear(9, 3))),
    (ValueError, "one attention layer per mechanism: got 2 for 1", attend(attention_layer_size=[3, 3])),
    (ValueError, "attention_layer_size must be a whole number", attend(attention_layer_size=0)),
    (TypeError, "the width of attention_layer Identity is not known",
     lambda: ready(attention_layer=nn.Identity()).output_size),
    (ValueError, r"initial_cell_state has 2 rows, the batch has 3. For BeamSearchDecoder tile the state",
     lambda: ready(initial_cell_state=torch.zeros(2, 5)).initial_state(3)),
    (TypeError, "the state is an AttentionWrapperState, got a Tensor", lambda: ready()(X[:, 0], torch.zeros(3, 5))),
    (ValueError, "clone: no field cell; they are cell_state", lambda: ready().initial_state(3).clone(cell=X)),
    (ValueError, r"clone: cell_state must keep its structure and shapes: expected \[3, 5\], got \[3, 4\]",
     lambda: ready().initial_state(3).clone(cell_state=torch.zeros(3, 4))),
    (ValueError, "clone: cell_state must keep its structure",
     lambda: ready().initial_state(3).clone(cell_state=(torch.zeros(3, 5),))),
    # losses
    (ValueError, r"logits must be \[batch, steps, classes\]", loss((2, 3))),
    (ValueError, r"weights must be \[2, 3\]", loss(weights=(2,))),
    (ValueError, r"targets must be whole numbers \[2, 3\]", loss(targets=(2, 2))),
    (ValueError, r"targets must be whole numbers .* got torch.float32",
     lambda: sequence_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.ones(2, 3))),
    (ValueError, "average_across_timesteps and sum_over_timesteps exclude",
     loss((2, 3, 4), (2, 3), (2, 3), True, True, True)),
    (ValueError, "average_across_batch and sum_over_batch exclude",
     loss((2, 3, 4), (2, 3), (2, 3), False, True, False, True)),
    (ValueError, "targets must lie between 0 and the number of classes, 4; got 5",
     lambda: sequence_loss(torch.zeros(2, 3, 4), torch.full((2, 3), 5), torch.ones(2, 3))),
    (ValueError, "lengths must be whole numbers, got torch.float32", lambda: sequence_mask([1.0, 2.0])),
]  # fmt: skip


@pytest.mark.parametrize(("error", "words", "call"), BAD, ids=[words[:50] for _, words, _ in BAD])
def test_bad_input(error: type[Exception], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_stack_with_attention_says_whose_rows_do_not_fit() -> None:
    stack = MultiRNNCell([AttentionWrapper(GRUCell(5), BahdanauAttention(5, MEMORY)), GRUCell(5)])
    with pytest.raises(ValueError, match="BahdanauAttention: non-matching batch sizes"):
        generate(stack, [1, 1], 0, embed=TABLE, output_layer=LAYER, max_steps=2)


def test_what_can_be_known_is_said_before_any_step() -> None:
    steps = []

    def cell(inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        steps.append(1)
        return state, state

    for changes in ({"eos": 7}, {"start": [9, 1, 1]}, {"max_steps": 0}, {"start": [[1], [], [1]]}):
        with pytest.raises(ValueError, match=r"vocabulary|range|max_steps|empty"):
            go(cell=cell, initial_state=torch.zeros(3, 5), **changes)()
    assert not steps
