"""Beam search: what it returns is worth what it says, and where nothing is pruned it is the best there is."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from decode.models import END, KINDS, Counting, Model, alone, make_model, make_varied
from throughtime import dynamic_rnn
from throughtime._nested import map_leaves
from throughtime.decode import (
    AttentionWrapper,
    Beam,
    BeamSearchDecoder,
    Hypotheses,
    dynamic_decode,
    generate,
    tile_batch,
)
from throughtime.decode.beams import BeamRules, candidates, extend, start_beams

ATTENTIVE = ["luong", "bahdanau"]


def penalty(lengths: Tensor, weight: float) -> Tensor:
    return ((5.0 + lengths.double()) / 6.0) ** weight


def run(model: Model, strategy: Beam, limit: int | None = 8, **options: Any) -> Hypotheses:
    got = generate(model.cell, model.starts, END, strategy=strategy, max_steps=limit, **options, **model.given())
    assert torch.equal(got.ids, got.beams.ids[:, 0])
    assert torch.equal(got.lengths, got.beams.lengths[:, 0])
    assert torch.equal(got.scores, got.beams.scores[:, 0])
    return got.beams


def near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "weight"), [(2, 0.0), (5, 0.6)])
def test_scores_are_those_of_teacher_forcing(kind: str, width: int, weight: float) -> None:
    for seed in range(3):
        model = make_model(kind, rows=4, seed=seed, sharpness=1.0, end_bias=1.0)
        found = run(model, Beam(width, length_penalty=weight))
        for k in range(width):
            near(found.log_probs[:, k], model.log_probs(found.ids[:, k], found.lengths[:, k]))
        near(found.scores, found.log_probs / penalty(found.lengths, weight))
        assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
        last = found.ids.gather(2, found.lengths[:, :, None] - 1)[:, :, 0]
        assert torch.equal(found.finished, last == END)
        for row in found.ids.tolist():
            assert len({tuple(ids) for ids in row}) == width


@pytest.mark.parametrize("kind", KINDS)
def test_width_one_is_greedy(kind: str) -> None:
    for seed in range(5):
        model = make_model(kind, rows=6, seed=seed, sharpness=1.0, end_bias=0.5)
        greedy = generate(model.cell, model.starts, END, max_steps=9, **model.given())
        for weight in (0.0, 1.0):
            found = run(model, Beam(1, length_penalty=weight), 9)
            assert torch.equal(found.ids[:, 0], greedy.ids)
            assert torch.equal(found.lengths[:, 0], greedy.lengths)
            near(found.log_probs[:, 0], greedy.scores)


def every_sequence(vocabulary: int, steps: int) -> list[list[int]]:
    """All that can come out: up to the first end token, or `steps` others."""
    others = [token for token in range(vocabulary) if token != END]
    ended = [[*body, END] for n in range(steps) for body in itertools.product(others, repeat=n)]
    return ended + [list(body) for body in itertools.product(others, repeat=steps)]


@pytest.mark.parametrize("kind", ["gru", "lstm", "luong"])
@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_nothing_pruned_is_an_enumeration(kind: str, weight: float) -> None:
    steps, vocabulary = 4, 3
    model = make_model(kind, rows=3, vocabulary=vocabulary, sharpness=1.0)
    sequences = every_sequence(vocabulary, steps)
    ids = torch.tensor([s + [END] * (steps - len(s)) for s in sequences])
    lengths = torch.tensor([len(s) for s in sequences])
    worth = torch.stack(
        [model.log_probs(one.expand(3, -1), n.expand(3)) / penalty(n, weight) for one, n in zip(ids, lengths)], 1
    )
    order = worth.argsort(1, descending=True)
    exact = run(model, Beam(len(sequences), length_penalty=weight), steps)
    near(exact.scores, worth.gather(1, order))
    assert torch.equal(exact.ids, ids[order])
    for width in (1, 2, 5, 12):
        found = run(model, Beam(width, length_penalty=weight), steps)
        assert (found.scores[:, 0] <= exact.scores[:, 0] + 1e-12).all()
    wider = run(model, Beam(len(sequences) + 9, length_penalty=weight), steps)
    near(wider.scores[:, : len(sequences)], exact.scores)
    assert (wider.scores[:, len(sequences) :] == -math.inf).all()
    assert (wider.lengths[:, len(sequences) :] == 0).all()
    assert not wider.finished[:, len(sequences) :].any()


def decode(model: Model, width: int, limit: int, **options: Any) -> tuple[Any, Any, Tensor]:
    state = tile_batch(model.state, width)
    if isinstance(model.cell, AttentionWrapper):
        mechanism = model.cell.attention_mechanism
        memory, lengths = tile_batch((mechanism.memory, mechanism.memory_mask.sum(1)), width)
        mechanism.set_memory(memory, lengths)
    decoder = BeamSearchDecoder(model.cell, model.embed, model.starts, END, state, width, model.layer, **options)
    return dynamic_decode(decoder, maximum_iterations=limit)


@pytest.mark.parametrize(
    ("kind", "weight", "coverage"),
    [(kind, weight, 0.0) for kind in KINDS for weight in (0.0, 0.6)] + [(kind, 0.6, 0.4) for kind in ATTENTIVE],
)
def test_the_decoder_and_generate_agree(kind: str, weight: float, coverage: float) -> None:
    found = run(make_varied(kind, 4), Beam(3, weight, coverage), 10)
    options = {"length_penalty_weight": weight, "coverage_penalty_weight": coverage}
    outputs, state, lengths = decode(make_varied(kind, 4), 3, 10, **options)
    assert torch.equal(outputs.predicted_ids.transpose(1, 2), found.ids)
    assert torch.equal(lengths, found.lengths)
    assert torch.equal(state.lengths, lengths)
    near(state.log_probs, found.log_probs)
    near(outputs.beam_search_decoder_output.scores[:, -1], found.scores)


@pytest.mark.parametrize("kind", ["gru", "luong"])
@pytest.mark.parametrize("tf1_exact", [False, True])
def test_a_finished_beams_score_never_moves(kind: str, tf1_exact: bool) -> None:
    coverage = 0.5 if kind == "luong" else 0.0
    options = {"length_penalty_weight": 0.9, "coverage_penalty_weight": coverage, "tf1_exact": tf1_exact}
    model = make_model(kind, rows=4, sharpness=1.0, end_bias=1.0)
    outputs, _, _ = decode(model, 4, 12, **options)
    steps = map_leaves(Tensor.detach, outputs.beam_search_decoder_output)
    moved = kept = 0
    for row in range(4):
        ended = [False] * 4
        for t in range(steps.scores.shape[1]):
            parents = steps.parent_ids[row, t].tolist()
            for k, parent in enumerate(parents):
                if t and ended[parent]:
                    same = math.isclose(steps.scores[row, t, k], steps.scores[row, t - 1, parent], rel_tol=1e-12)
                    kept, moved = kept + same, moved + (not same)
            ended = [(t > 0 and ended[p]) or int(steps.predicted_ids[row, t, k]) == END for k, p in enumerate(parents)]
    assert kept > 5
    assert (moved > 0) == tf1_exact


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_gives_what_it_gives_in_the_batch(kind: str) -> None:
    strategy = Beam(3, length_penalty=0.7)
    found = run(make_varied(kind, 5), strategy)
    for row in range(5):
        single = run(alone(make_varied(kind, 5), row), strategy)
        steps = single.ids.shape[2]
        assert torch.equal(single.lengths[0], found.lengths[row])
        assert torch.equal(single.ids[0], found.ids[row, :, :steps])
        near(single.scores[0], found.scores[row])


@pytest.mark.parametrize("kind", KINDS)
def test_only_live_beams_are_run(kind: str) -> None:
    model = make_varied(kind, 6)
    cell = Counting(model.cell)
    width = 3
    generate(cell, model.starts, END, strategy=Beam(width), max_steps=10, backend="portable", **model.given())
    assert cell.rows[0] == 6  # all beams of a row begin as one
    outputs, _, _ = decode(make_varied(kind, 6), width, 10)
    steps = outputs.beam_search_decoder_output
    ended = torch.zeros(6, width, dtype=torch.bool)
    live = []
    for t in range(steps.predicted_ids.shape[1]):
        before = ended.gather(1, steps.parent_ids[:, t]) if t else ended
        ended = before | (steps.predicted_ids[:, t] == END)
        live.append(int((~ended).sum()))
    assert cell.rows[1:] == live[: len(cell.rows) - 1]
    assert len(set(cell.rows)) > 2


def forced_alignments(model: Model, ids: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, M] by teacher forcing."""
    model.cell.output_alignments = True
    fed = torch.cat([model.starts[:, None], ids[:, :-1]], 1)
    outputs, _ = dynamic_rnn(model.cell, model.embed(fed), lengths, model.state, backend="portable")
    model.cell.output_alignments = False
    return outputs.alignments.detach()


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_alignments_follow_the_beams(kind: str) -> None:
    model = make_varied(kind, 4)
    found = run(model, Beam(3), alignments=True)
    for k in range(3):
        near(found.alignments[:, k], forced_alignments(model, found.ids[:, k], found.lengths[:, k]))


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_the_history_follows_the_beams(kind: str) -> None:
    model, plain = make_varied(kind, 4), make_varied(kind, 4)
    model.cell.alignment_history = True
    outputs, state, lengths = decode(model, 3, 8)
    ids, history = outputs.predicted_ids, state.cell_state.alignment_history
    assert history.shape == (ids.shape[1], 12, 5)
    for k in range(3):
        along = history.unflatten(1, (4, 3))[:, :, k].transpose(0, 1)
        real = (torch.arange(ids.shape[1]) < lengths[:, k, None])[:, :, None]
        near(torch.where(real, along, 0), forced_alignments(plain, ids[:, :, k], lengths[:, k]))


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_coverage_is_what_a_finished_beam_left_out(kind: str) -> None:
    model = make_model(kind, rows=4, sharpness=1.0, end_bias=1.0)
    found = run(model, Beam(3, 0.5, 0.3), 7)
    assert found.finished.any()
    assert not found.finished.all()
    for k in range(3):
        weights = forced_alignments(model, found.ids[:, k], found.lengths[:, k]).sum(1)
        left_out = torch.where(weights == 0, 1, weights).clamp(max=1).log().sum(1)
        expected = found.log_probs[:, k] / penalty(found.lengths[:, k], 0.5)
        near(found.scores[:, k], expected + 0.3 * left_out * found.finished[:, k])


def test_a_constraint_sees_the_beams_tokens() -> None:
    model = make_model("gru", rows=3, sharpness=1.0, end_bias=1.0)

    def never_twice_nor_short(ids: Tensor, logits: Tensor) -> Tensor:
        logits = logits.scatter(1, ids, -torch.inf)
        if ids.shape[1] < 2:
            logits[:, END] = -torch.inf
        return logits

    found = run(model, Beam(4), 6, constraint=never_twice_nor_short)
    assert (found.lengths >= 3).all()
    for hypothesis, length in zip(found.ids.flatten(0, 1).tolist(), found.lengths.flatten().tolist()):
        assert len(set(hypothesis[:length])) == length


def test_hypotheses_that_cannot_be_are_none() -> None:
    """Only one token is allowed at every step: one hypothesis, and no duplicates of it."""
    model = make_model("gru", rows=2)

    def only_two(ids: Tensor, logits: Tensor) -> Tensor:
        return torch.where(torch.arange(7) == (2 if ids.shape[1] < 3 else END), logits, -torch.inf)

    found = run(model, Beam(3), None, constraint=only_two)
    assert found.ids[:, 0].tolist() == [[2, 2, 2, END]] * 2
    assert (found.scores[:, 0] == 0).all()
    assert (found.scores[:, 1:] == -math.inf).all()
    assert (found.lengths[:, 1:] == 0).all()


def test_without_an_end_token() -> None:
    model = make_model("lstm", rows=3, sharpness=1.0)
    got = generate(model.cell, model.starts, None, strategy=Beam(4), max_steps=5, **model.given())
    assert (got.beams.lengths == 5).all()
    assert not got.beams.finished.any()
    for k in range(4):
        near(got.beams.log_probs[:, k], model.log_probs(got.beams.ids[:, k], got.beams.lengths[:, k]))


def test_an_empty_batch() -> None:
    model = make_model("gru", rows=2)
    state = map_leaves(lambda leaf: leaf[:0], model.state)
    got = generate(
        model.cell, model.starts[:0], END, embed=model.embed, output_layer=model.layer, initial_state=state,
        strategy=Beam(3),
    )  # fmt: skip
    assert got.beams.ids.shape == (0, 3, 0)


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("end", [0, 4, None])
def test_candidates_hold_the_best_of_all_tokens(width: int, end: int | None) -> None:
    """Against a step over the whole vocabulary."""
    torch.manual_seed(width)
    rules = BeamRules(width, end, length_weight=0.8)
    logits = torch.randn(5, width, 9, dtype=torch.float64)
    beams = start_beams(5, width, torch.float64, torch.device("cpu"))
    beams = beams._replace(log_probs=-torch.rand(5, width, dtype=torch.float64), finished=torch.rand(5, width) < 0.3)
    if end is None:
        beams = beams._replace(finished=torch.zeros(5, width, dtype=torch.bool))
    got = extend(beams, *candidates(logits, rules), None, rules)
    tokens = torch.arange(9) if end is None else torch.tensor([t for t in range(9) if t != end] + [end])
    all_tokens = tokens.expand(5, width, 9)
    want = extend(beams, logits.log_softmax(-1).gather(2, all_tokens), all_tokens, None, rules)
    near(got.scores, want.scores)
    possible = got.scores > -math.inf
    for name in ("tokens", "parents"):
        assert torch.equal(getattr(got, name)[possible], getattr(want, name)[possible])
