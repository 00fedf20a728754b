"""dynamic_decode: what a run means, helpers, one's own decoders, and rows that are left out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decode.models import END, KINDS, Counting, make_model, make_varied
from throughtime import GRUCell, dynamic_rnn
from throughtime._nested import leaves
from throughtime.decode import (
    BasicDecoder,
    CustomHelper,
    Decoder,
    Generation,
    GreedyEmbeddingHelper,
    Helper,
    InferenceHelper,
    Sample,
    SampleEmbeddingHelper,
    ScheduledEmbeddingTrainingHelper,
    ScheduledOutputTrainingHelper,
    TrainingHelper,
    dynamic_decode,
    generate,
)

LENGTHS = [3, 5, 0, 2]


def sequences(features: int = 3) -> Tensor:
    return torch.randn(4, 5, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time_major", [False, True])
def test_teacher_forcing_is_dynamic_rnn(kind: str, time_major: bool) -> None:
    """Outputs, state, and the gradients of inputs and weights."""
    model = make_model(kind, rows=4)
    x = sequences().requires_grad_()
    given = x.transpose(0, 1) if time_major else x
    helper = TrainingHelper(given, LENGTHS, time_major)
    decoder = BasicDecoder(model.cell, helper, model.state, model.layer)
    outputs, state, lengths = dynamic_decode(decoder, output_time_major=time_major, impute_finished=True)
    ran, final = dynamic_rnn(model.cell, given, LENGTHS, model.state, time_major=time_major, backend="portable")
    mask = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]
    mask = (mask.T if time_major else mask)[:, :, None]
    torch.testing.assert_close(outputs.rnn_output, model.layer(ran) * mask)
    assert torch.equal(outputs.sample_id, outputs.rnn_output.argmax(-1))
    assert lengths.tolist() == LENGTHS
    for a, b in zip(leaves(state), leaves(final), strict=True):
        torch.testing.assert_close(a, b)
    tensors = [x, *(weight for weight in model.cell.parameters())]
    grads = [
        torch.autograd.grad(out.sum() + sum(leaf.sum() for leaf in leaves(s)), tensors, allow_unused=True)
        for out, s in ((outputs.rnn_output, state), (model.layer(ran) * mask, final))
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_is_generation(kind: str) -> None:
    model = make_varied(kind, 6)
    cell = Counting(model.cell)
    helper = GreedyEmbeddingHelper(model.embed, model.starts, END)
    decoder = BasicDecoder(cell, helper, model.state, model.layer)
    outputs, _, lengths = dynamic_decode(decoder, impute_finished=True, maximum_iterations=10)
    got = generate(model.cell, model.starts, END, max_steps=10, **model.given())
    assert torch.equal(outputs.sample_id, got.ids)  # the end token is 0, and so is what is imputed
    assert torch.equal(lengths, got.lengths)
    assert cell.rows == [int((lengths > t).sum()) for t in range(int(lengths.max()))]


def test_without_imputing_finished_rows_go_on() -> None:
    model = make_varied("gru", 6)
    cell = Counting(model.cell)
    helper = GreedyEmbeddingHelper(model.embed, model.starts, END)
    decoder = BasicDecoder(cell, helper, model.state, model.layer)
    outputs, _, lengths = dynamic_decode(decoder, maximum_iterations=10)
    assert set(cell.rows) == {6}
    early = int(lengths.argmin())
    assert int(lengths[early]) < outputs.rnn_output.shape[1]
    assert (outputs.rnn_output[early, int(lengths[early]) :] != 0).any()


def test_sampling_is_that_of_generation() -> None:
    model = make_varied("lstm", 6)
    options = {"top_k": 4, "top_p": 0.9, "seed": 3}
    helper = SampleEmbeddingHelper(model.embed, model.starts, END, 0.8, **options)
    decoder = BasicDecoder(model.cell, helper, model.state, model.layer)
    outputs, _, lengths = dynamic_decode(decoder, impute_finished=True, maximum_iterations=8)
    strategy = Sample(temperature=0.8, **options)
    got: Generation = generate(model.cell, model.starts, END, strategy=strategy, max_steps=8, **model.given())
    assert torch.equal(outputs.sample_id, got.ids)
    assert torch.equal(lengths, got.lengths)


@pytest.mark.parametrize("impute", [False, True])
def test_no_steps(impute: bool) -> None:
    model = make_model("lstm")
    helper = GreedyEmbeddingHelper(model.embed, model.starts, END)
    decoder = BasicDecoder(model.cell, helper, model.state, model.layer)
    outputs, state, lengths = dynamic_decode(decoder, impute_finished=impute, maximum_iterations=0)
    assert outputs.rnn_output.shape == (4, 0, 7)
    assert outputs.sample_id.shape == (4, 0)
    assert state is model.state
    assert lengths.tolist() == [0] * 4
    empty = BasicDecoder(model.cell, TrainingHelper(sequences(), [0] * 4), model.state)
    assert dynamic_decode(empty, impute_finished=impute)[0].rnn_output.shape == (4, 0, 5)


def test_the_cells_own_initial_state() -> None:
    cell = GRUCell(4)
    x = sequences().float()
    outputs, state, _ = dynamic_decode(BasicDecoder(cell, TrainingHelper(x, LENGTHS)), impute_finished=True)
    ran, final = dynamic_rnn(cell, x, LENGTHS, backend="portable")
    torch.testing.assert_close(outputs.rnn_output, ran)
    torch.testing.assert_close(state, final)


class Countdown(Decoder):
    """A decoder of one's own: row b ends after b + 1 steps; the output is the time."""

    def __init__(self, rows: int, tracks: bool = False) -> None:
        self.rows, self.tracks_own_finished, self.seen = rows, tracks, []

    def initialize(self) -> Any:
        return torch.zeros(self.rows, dtype=torch.bool), torch.zeros(self.rows, 1), torch.arange(self.rows)

    def step(self, time: int, inputs: Any, state: Any, row_consts: Any = ()) -> Any:
        self.seen.append(len(inputs))
        finished = (
            state == 0 if time % 2 == 0 or self.tracks_own_finished else torch.zeros(len(state), dtype=torch.bool)
        )
        return {"time": inputs + time}, state - 1, inputs, (state <= 0 if self.tracks_own_finished else finished)


def test_a_decoder_of_ones_own() -> None:
    """It does not say that it drops rows, so it sees all of them."""
    decoder = Countdown(4, tracks=True)
    outputs, state, lengths = dynamic_decode(decoder, maximum_iterations=9)
    assert lengths.tolist() == [1, 2, 3, 4]
    assert decoder.seen == [4] * 4
    assert outputs["time"].shape == (4, 4, 1)
    assert state.tolist() == [-4, -3, -2, -1]


def test_a_finished_row_stays_finished() -> None:
    """Row b says so at step b alone, and only at even steps; later steps say nothing."""
    outputs, state, lengths = dynamic_decode(Countdown(4), maximum_iterations=7, impute_finished=True)
    assert lengths.tolist() == [1, 7, 3, 7]
    assert state.tolist() == [-1, -6, -1, -4]
    assert outputs["time"][:, :, 0].tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 1, 2, 0, 0, 0, 0],
        [0, 1, 2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize("impute", [False, True])
def test_scheduled_sampling_of_tokens(impute: bool) -> None:
    model = make_model("gru", rows=4, sharpness=0.5)
    x = sequences()

    def run(probability: Any, seed: int = 0) -> Any:
        helper = ScheduledEmbeddingTrainingHelper(x, [5, 5, 4, 3], model.embed, probability, seed=seed)
        decoder = BasicDecoder(model.cell, helper, model.state, model.layer)
        return dynamic_decode(decoder, impute_finished=impute)[0]

    forced, _, _ = dynamic_decode(
        BasicDecoder(model.cell, TrainingHelper(x, [5, 5, 4, 3]), model.state, model.layer), impute_finished=impute
    )
    never, always, mixed = run(0.0), run(1.0), run([0.0, 1.0, 0.5, 0.5])
    torch.testing.assert_close(never.rnn_output, forced.rnn_output)
    assert (never.sample_id[:2] == -1).all()
    assert (always.sample_id[:2] >= 0).all()
    assert (mixed.sample_id[0] == -1).all()
    assert (mixed.sample_id[1] >= 0).all()
    torch.testing.assert_close(mixed.rnn_output[1], always.rnn_output[1])
    assert torch.equal(run(0.5, 4).sample_id, run(0.5, 4).sample_id)
    assert not torch.equal(run(0.5, 4).sample_id, run(0.5, 5).sample_id)
    # Step 1 was fed the embedding of the token drawn at step 0.
    _, state = model.cell(x[1:2, 0], model.state[1:2])
    output, _ = model.cell(model.embed(always.sample_id[1:2, 0]), state)
    torch.testing.assert_close(always.rnn_output[1:2, 1], model.layer(output))


def test_where_scheduled_sampling_falls() -> None:
    x = torch.zeros(200, 50, 1)
    helper = ScheduledEmbeddingTrainingHelper(x, [50] * 200, torch.zeros(3, 1), 0.3, seed=1)
    drawn = torch.stack([helper.sample(t, torch.zeros(200, 3), ()) for t in range(50)])
    assert float((drawn >= 0).double().mean()) == pytest.approx(0.3, abs=0.02)
    shares = torch.bincount(drawn[drawn >= 0]) / (drawn >= 0).sum()
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("function", [None, torch.tanh])
def test_scheduled_sampling_of_outputs(auxiliary: bool, function: Any) -> None:
    extra = sequences(2) + 1 if auxiliary else None
    torch.manual_seed(0)
    cell, layer = GRUCell(6).double(), nn.Linear(6, 3).double()
    x = sequences()

    def run(probability: float) -> Any:
        helper = ScheduledOutputTrainingHelper(
            x, [5, 3, 4, 5], probability, next_inputs_fn=function, auxiliary_inputs=extra, seed=2
        )
        return dynamic_decode(BasicDecoder(cell, helper, output_layer=layer), impute_finished=True)[0]

    def step(t: int, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.cat([value, extra[:, t]], -1) if extra is not None else value
        output, state = cell(value, state)
        return layer(output), state

    for probability in (0.0, 1.0):
        outputs = run(probability)
        assert outputs.sample_id[0].tolist() == [probability == 1.0] * 5
        value, state = x[:, 0], torch.zeros(4, 6, dtype=torch.float64)
        for t in range(3):
            value, state = step(t, value, state)
            torch.testing.assert_close(outputs.rnn_output[:, t], value)
            value = (value if function is None else function(value)) if probability else x[:, t + 1]


def test_feedback_of_values() -> None:
    """A helper of one's own functions: a cell that doubles its input until it exceeds 20."""

    def cell(inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * inputs, state

    helper = InferenceHelper(
        lambda outputs: outputs, [1], torch.float32, torch.tensor([[1.0], [5.0]]), lambda s: s[:, 0] > 20
    )
    outputs, _, lengths = dynamic_decode(BasicDecoder(cell, helper, torch.zeros(2, 1)), impute_finished=True)
    assert outputs.rnn_output[:, :, 0].tolist() == [[2, 4, 8, 16, 32], [10, 20, 40, 0, 0]]
    assert lengths.tolist() == [5, 3]
    scaled = InferenceHelper(
        lambda outputs: outputs, None, None, torch.tensor([[1.0]]), lambda s: s[:, 0] > 20, lambda s: s + 1
    )
    assert scaled.batch_size == 1
    outputs, _, _ = dynamic_decode(BasicDecoder(cell, scaled, torch.zeros(1, 1)))
    assert outputs.rnn_output[0, :, 0].tolist() == [2, 6, 14, 30]


def test_a_helper_of_functions() -> None:
    model = make_model("gru")
    start = model.embed(model.starts).detach()

    def next_inputs(time: int, outputs: Tensor, state: Tensor, ids: Tensor) -> Any:
        return torch.full((4,), time == 2), model.embed(ids), state * 0 if time == 0 else state

    helper = CustomHelper(
        lambda: (torch.zeros(4, dtype=torch.bool), start), lambda time, outputs, state: outputs.argmin(-1), next_inputs
    )
    assert helper.batch_size == 4
    outputs, _, lengths = dynamic_decode(BasicDecoder(model.cell, helper, model.state, model.layer))
    assert lengths.tolist() == [3] * 4
    _, state = model.cell(start, model.state)
    ids = outputs.sample_id
    assert torch.equal(ids[:, 0], outputs.rnn_output[:, 0].argmin(-1))
    output, _ = model.cell(model.embed(ids[:, 0]), state * 0)
    torch.testing.assert_close(outputs.rnn_output[:, 1], model.layer(output))


def test_what_a_helper_must_write() -> None:
    helper = Helper()
    for word, call in (
        ("must say its batch_size", lambda: helper.batch_size),
        ("initialize", helper.initialize),
        (r"sample\(time", lambda: helper.sample(0, None, None)),
        ("next_inputs", lambda: helper.next_inputs(0, None, None, torch.zeros(1))),
    ):
        with pytest.raises(NotImplementedError, match=word):
            call()
