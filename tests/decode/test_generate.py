"""`generate`, against the loop that it means, row by row."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decode.models import END, KINDS, START, Counting, Model, alone, make_model, make_varied
from throughtime import GRUCell, dynamic_rnn
from throughtime._nested import map_leaves
from throughtime._pipeline import compilations
from throughtime.decode import AttentionWrapper, Beam, Greedy, LuongAttention, Sample, generate, generate_stream

PLAIN = ["gru", "lstm", "stack"]


def loop(model: Model, row: int, limit: int, prompt: list[int] | None = None) -> tuple[list[int], float]:
    """The definition, for one row of a cell without row constants."""
    state = map_leaves(lambda leaf: leaf[row : row + 1], model.state)
    *before, token = prompt or [START]
    with torch.no_grad():
        for fed in before:
            _, state = model.cell(model.embed(torch.tensor([fed])), state)
        ids, score = [], 0.0
        while len(ids) < limit:
            output, state = model.cell(model.embed(torch.tensor([token])), state)
            log_probs = model.layer(output).log_softmax(-1)[0]
            token = int(log_probs.argmax())
            score += float(log_probs[token])
            ids.append(token)
            if token == END:
                break
    return ids, score


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_the_loop(kind: str, seed: int) -> None:
    model = make_model(kind, rows=6, seed=seed)
    got = generate(model.cell, model.starts, END, max_steps=12, **model.given())
    lengths = []
    for row in range(model.rows):
        ids, score = loop(model, row, 12)
        lengths.append(len(ids))
        assert got.ids[row, : len(ids)].tolist() == ids
        assert (got.ids[row, len(ids) :] == END).all()
        assert float(got.scores[row]) == pytest.approx(score, rel=1e-12)
    assert got.lengths.tolist() == lengths
    assert got.ids.shape[1] == max(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_teacher_forcing(kind: str) -> None:
    for seed in range(4):
        model = make_model(kind, rows=5, seed=seed, sharpness=1.0)
        for strategy in (Greedy(), Sample(seed=seed), Sample(temperature=0.7, top_k=3, seed=seed)):
            got = generate(model.cell, model.starts, END, strategy=strategy, max_steps=9, **model.given())
            torch.testing.assert_close(
                got.scores, model.log_probs(got.ids, got.lengths).detach(), rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [Greedy(), Sample(seed=1)], ids=["greedy", "sample"])
def test_a_row_that_has_ended_is_not_run(kind: str, strategy: Any) -> None:
    model = make_varied(kind, 8, strategy)
    cell = Counting(model.cell)
    got = generate(cell, model.starts, END, strategy=strategy, max_steps=10, backend="portable", **model.given())
    assert len(set(got.lengths.tolist())) > 2
    assert cell.rows == [int((got.lengths > t).sum()) for t in range(int(got.lengths.max()))]


@pytest.mark.parametrize("kind", ["gru", "luong"])
def test_compiled_greedy_decoding_is_the_eager_one_and_is_compiled_once(kind: str) -> None:
    """The output layer reads the attention that the step has just written into its state."""
    model = make_varied(kind, 8, Greedy())
    eager = generate(model.cell, model.starts, END, max_steps=40, backend="portable", **model.given())
    got = generate(model.cell, model.starts, END, max_steps=40, **model.given())
    assert torch.equal(got.ids, eager.ids)
    assert torch.equal(got.lengths, eager.lengths)
    torch.testing.assert_close(got.scores, eager.scores, rtol=1e-10, atol=1e-10)
    before = compilations()
    generate(model.cell, model.starts, END, max_steps=7, **model.given())
    assert compilations() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [Greedy(), Sample(seed=5)], ids=["greedy", "sample"])
def test_a_row_alone_gives_what_it_gives_in_the_batch(kind: str, strategy: Any) -> None:
    """Ids exactly; scores to rounding, for eager products change their last bits with the number of rows."""
    whole = make_varied(kind, 5, strategy)
    got = generate(whole.cell, whole.starts, END, strategy=strategy, max_steps=9, **whole.given())
    for row in range(5 if strategy == Greedy() else 1):  # a draw is keyed by the row's number: row 0 is row 0 alone
        one = alone(make_varied(kind, 5, strategy), row)
        single = generate(one.cell, one.starts, END, strategy=strategy, max_steps=9, **one.given())
        length = int(got.lengths[row])
        assert single.lengths.tolist() == [length]
        assert torch.equal(single.ids[0], got.ids[row, :length])
        torch.testing.assert_close(single.scores[0], got.scores[row], rtol=1e-10, atol=0)


def test_draws_do_not_depend_on_the_rows_that_follow() -> None:
    model = make_model(rows=6, sharpness=0.3)
    few = Model(model.cell, model.embed, model.layer, 2, model.state[:2])
    strategy = Sample(seed=9)
    all_six = generate(model.cell, model.starts, END, strategy=strategy, max_steps=70, **model.given())
    two = generate(few.cell, few.starts, END, strategy=strategy, max_steps=70, **few.given())
    for row in range(2):
        length = int(two.lengths[row])
        assert torch.equal(two.ids[row, :length], all_six.ids[row, :length])


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_any_length(kind: str) -> None:
    prompts = [[1, 3, 2], [4], [2, 2, 5, 1, 6], [3, 1]]
    model = make_model(kind, rows=4)
    got = generate(model.cell, prompts, END, max_steps=6, backend="portable", **model.given())
    width = max(map(len, prompts))
    padded = torch.tensor([prompt + [99] * (width - len(prompt)) for prompt in prompts])
    options = {"start_length": [3, 1, 5, 2], "max_steps": 6, "backend": "portable"}
    same = generate(model.cell, padded, END, **options, **model.given())
    assert torch.equal(got.ids, same.ids)
    for row, prompt in enumerate(prompts):
        one = alone(make_model(kind, rows=4), row)
        length = got.lengths[row : row + 1]
        ids = got.ids[row : row + 1, : int(length)]
        score = one.log_probs(ids, length, torch.tensor([prompt]))
        torch.testing.assert_close(got.scores[row : row + 1], score.detach(), rtol=1e-10, atol=1e-10)
        if kind in PLAIN:
            assert ids[0].tolist() == loop(model, row, 6, prompt)[0]


def test_prompts_run_on_the_backend_that_is_asked_for() -> None:
    model = make_model("lstm", rows=2)
    prompts = [[1, 3, 2], [4, 5]]
    portable, native = (
        generate(model.cell, prompts, END, max_steps=6, backend=backend, **model.given())
        for backend in ("portable", "native")
    )
    assert torch.equal(portable.ids, native.ids)
    torch.testing.assert_close(portable.scores, native.scores, rtol=1e-10, atol=1e-10)


def test_one_token_stands_for_all_rows() -> None:
    model = make_model(rows=3)
    many = generate(model.cell, model.starts, END, max_steps=5, **model.given())
    assert torch.equal(generate(model.cell, START, END, max_steps=5, **model.given()).ids, many.ids)
    assert (
        generate(GRUCell(6), START, END, embed=nn.Embedding(7, 3), output_layer=nn.Linear(6, 7), max_steps=2).ids.shape[
            0
        ]
        == 1
    )


def test_without_an_end_token_all_rows_run_to_the_limit() -> None:
    model = make_model()
    got = generate(model.cell, model.starts, None, max_steps=8, **model.given())
    assert got.lengths.tolist() == [8] * 4
    assert got.ids.shape == (4, 8)


def test_without_a_limit_the_end_token_ends() -> None:
    model = make_model(end_bias=6.0)
    got = generate(model.cell, model.starts, END, **model.given())
    assert (got.ids.gather(1, got.lengths[:, None] - 1) == END).all()


@pytest.mark.parametrize("embed", ["table", "function", "none"])
def test_kinds_of_embedding(embed: str) -> None:
    model = make_model()
    expected = generate(model.cell, model.starts, END, max_steps=5, **model.given()).ids
    given = model.given()
    if embed == "table":
        given["embed"] = model.embed.weight
    elif embed == "function":
        given["embed"] = lambda ids: model.embed(ids)
    else:
        given["embed"] = None
        inner = model.cell
        model.cell = lambda ids, state: inner(model.embed(ids), state)
    assert torch.equal(generate(model.cell, model.starts, END, max_steps=5, **given).ids, expected)


def test_a_constraint_sees_the_tokens_and_changes_the_choice() -> None:
    model = make_model(rows=5)
    seen = []

    def never_twice(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append(ids.clone())
        return logits.scatter(1, ids, -torch.inf)

    got = generate(model.cell, model.starts, END, constraint=never_twice, max_steps=6, **model.given())
    for row in range(5):
        length = int(got.lengths[row])
        ids = got.ids[row, :length].tolist()
        assert len(set(ids)) == len(ids)
    assert [ids.shape[1] for ids in seen] == list(range(len(seen)))
    free = generate(model.cell, model.starts, END, max_steps=6, **model.given())
    assert not torch.equal(free.ids, got.ids)
    assert (got.scores > -torch.inf).all()


def test_a_constraint_sees_its_own_rows_after_others_have_ended() -> None:
    model = make_varied("gru", 6)
    free = generate(model.cell, model.starts, END, max_steps=10, **model.given())

    def check(ids: Tensor, logits: Tensor) -> Tensor:
        running = [row for row in range(6) if free.lengths[row] > ids.shape[1]]
        expected = sorted(free.ids[row, : ids.shape[1]].tolist() for row in running)
        assert sorted(ids.tolist()) == expected
        return logits

    got = generate(model.cell, model.starts, END, constraint=check, max_steps=10, **model.given())
    assert torch.equal(got.ids, free.ids)


def test_streaming_yields_the_same_tokens() -> None:
    model = make_varied("luong", 6)
    whole = generate(model.cell, model.starts, END, max_steps=9, **model.given())
    ids: list[list[int]] = [[] for _ in range(6)]
    scores = [0.0] * 6
    for step in generate_stream(model.cell, model.starts, END, max_steps=9, **model.given()):
        for row, token, score in zip(step.rows.tolist(), step.ids.tolist(), step.scores.tolist()):
            ids[row].append(token)
            scores[row] = score
    for row in range(6):
        assert ids[row] == whole.ids[row, : int(whole.lengths[row])].tolist()
    assert scores == pytest.approx(whole.scores.tolist())


def test_a_stream_may_be_left_early() -> None:
    model = make_model()
    stream = generate_stream(model.cell, model.starts, None, max_steps=10**9, **model.given())
    assert len(list(itertools.islice(stream, 3))) == 3
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["luong", "bahdanau"])
def test_alignments_are_those_of_teacher_forcing(kind: str) -> None:
    model = make_varied(kind, 5)
    got = generate(model.cell, model.starts, END, max_steps=8, alignments=True, **model.given())
    assert got.alignments.shape == (5, got.ids.shape[1], 5)
    model.cell.output_alignments = True
    fed = torch.cat([model.starts[:, None], got.ids[:, :-1]], 1)
    outputs, _ = dynamic_rnn(model.cell, model.embed(fed), got.lengths, model.state, backend="portable")
    torch.testing.assert_close(got.alignments, outputs.alignments.detach(), rtol=1e-10, atol=1e-10)


def test_alignments_of_several_mechanisms() -> None:
    memory = torch.randn(2, 4, 3)
    cell = AttentionWrapper(GRUCell(6), [LuongAttention(6, memory), LuongAttention(6, memory, [4, 1])])
    given = {"embed": nn.Embedding(5, 3), "output_layer": nn.Linear(6, 5)}
    got = generate(cell, [1, 1], None, max_steps=3, alignments=True, **given)
    assert [weights.shape for weights in got.alignments] == [(2, 3, 4)] * 2
    assert (got.alignments[1][1, :, 0] == 1).all()


def test_gradients_are_not_kept() -> None:
    model = make_model()
    got = generate(model.cell, model.starts, END, max_steps=3, **model.given())
    assert not got.scores.requires_grad


def test_an_empty_batch() -> None:
    got = generate(
        GRUCell(6), torch.zeros(0, dtype=torch.long), END, embed=nn.Embedding(7, 3), output_layer=nn.Linear(6, 7)
    )
    assert got.ids.shape == (0, 0)
    assert got.lengths.shape == got.scores.shape == (0,)


def test_pytorchs_own_cells() -> None:
    torch.manual_seed(0)
    cell, embed, layer = nn.LSTMCell(3, 6), nn.Embedding(7, 3), nn.Linear(6, 7)
    got = generate(cell, [1, 2, 3], END, embed=embed, output_layer=layer, max_steps=6)
    h = c = torch.zeros(3, 6)
    ids = torch.tensor([1, 2, 3])
    with torch.no_grad():
        for t in range(got.ids.shape[1]):
            h, c = cell(embed(ids), (h, c))
            ids = layer(h).argmax(-1)
            running = t < got.lengths
            assert torch.equal(got.ids[running, t], ids[running])


@pytest.mark.parametrize(
    "strategy", [Greedy(), Beam(4, length_penalty=0.6), Sample(seed=2)], ids=["greedy", "beam", "sample"]
)
def test_a_row_alone_gives_the_same_bits(strategy: Any) -> None:
    """As the native backend's products do; sampled noise belongs to a row's place, so there the first row is tried."""
    torch.manual_seed(0)
    cell, embed, layer = GRUCell(96), nn.Embedding(50, 32), nn.Linear(96, 50)
    given = {"embed": embed, "output_layer": layer, "strategy": strategy, "max_steps": 20}
    start = torch.randn(33, 96)
    whole = generate(cell, [START] * 33, END, initial_state=start, **given)
    for row in [0] if isinstance(strategy, Sample) else range(33):
        single = generate(cell, [START], END, initial_state=start[row : row + 1], **given)
        assert torch.equal(single.ids[0], whole.ids[row, : single.ids.shape[1]])
        assert torch.equal(single.scores[0], whole.scores[row])
