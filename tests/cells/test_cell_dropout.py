"""Dropout: what is dropped, how often, when the masks are drawn, and what is never dropped."""

import pytest
import torch
from torch import nn

from throughtime._nested import leaves, map_leaves
from throughtime.cells import DropoutWrapper, GRUCell, LSTMCell, LSTMStateTuple, MultiRNNCell, RNNCell
from throughtime.cells.dropout import DropoutMasks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


class Echo(RNNCell):
    """Output and next state show what the cell got."""

    def __init__(self, state_size) -> None:
        super().__init__()
        self.state_size = state_size
        self.output_size = 50

    def forward(self, inputs, state, row_consts=()):
        return inputs, state


def consts(cell: RNNCell, rows: int = 40):
    return cell.row_consts(rows, torch.float32, CPU)


def assert_dropped(leaf: torch.Tensor, keep: float) -> None:
    """Ones through dropout: 0 or 1 / keep, in about the right share."""
    assert leaf.unique().tolist() == [0.0, pytest.approx(1 / keep)]
    assert (leaf != 0).float().mean().item() == pytest.approx(keep, abs=0.06)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(40, *shape)


def test_input() -> None:
    seen, _ = DropoutWrapper(Echo(50), input_keep_prob=0.3)(ones(50), ones(50))
    assert_dropped(seen, 0.3)


def test_output_is_dropped_and_the_state_is_not() -> None:
    output, state = DropoutWrapper(Echo(50), output_keep_prob=0.7)(ones(50), ones(50))
    assert_dropped(output, 0.7)
    assert torch.equal(state, ones(50))


def test_state_is_dropped_but_never_c() -> None:
    state = LSTMStateTuple(ones(50), ones(50))
    output, after = DropoutWrapper(Echo(LSTMStateTuple(50, 50)), state_keep_prob=0.6)(ones(50), state)
    assert torch.equal(after.c, state.c)
    assert_dropped(after.h, 0.6)
    assert torch.equal(output, ones(50))


def test_c_is_found_inside_nested_states() -> None:
    state = ({"a": LSTMStateTuple(ones(50), ones(50))}, [ones(50)])
    size = ({"a": LSTMStateTuple(50, 50)}, [50])
    _, after = DropoutWrapper(Echo(size), state_keep_prob=0.6)(ones(50), state)
    assert torch.equal(after[0]["a"].c, ones(50))
    assert_dropped(after[0]["a"].h, 0.6)
    assert_dropped(after[1][0], 0.6)
    assert isinstance(after[0]["a"], LSTMStateTuple)


def test_pytorchs_lstm_keeps_its_second_state() -> None:
    inner = nn.LSTMCell(3, 50)
    cell = DropoutWrapper(inner, state_keep_prob=0.5)
    x = torch.randn(40, 3)
    output, (h, c) = cell(x, cell.initial_state(40))
    plain_h, plain_c = inner(x)
    assert torch.equal(c, plain_c)
    assert torch.equal(output, plain_h)
    assert (h == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_a_visitor_chooses() -> None:
    def only_c(part):
        return LSTMStateTuple(True, False) if isinstance(part, LSTMStateTuple) else True

    state = (LSTMStateTuple(ones(50), ones(50)), ones(50))
    size = (LSTMStateTuple(50, 50), 50)

    def first_only(part):
        return (True, False) if isinstance(part, tuple) and not isinstance(part, LSTMStateTuple) else only_c(part)

    cell = DropoutWrapper(Echo(size), state_keep_prob=0.5, dropout_state_filter_visitor=first_only)
    _, after = cell(ones(50), state)
    assert_dropped(after[0].c, 0.5)
    assert torch.equal(after[0].h, ones(50))
    assert torch.equal(after[1], ones(50))
    none = DropoutWrapper(Echo(size), state_keep_prob=0.5, dropout_state_filter_visitor=lambda part: False)
    assert all(torch.equal(leaf, ones(50)) for leaf in leaves(none(ones(50), state)[1]))


def test_a_visitor_of_a_dict() -> None:
    cell = DropoutWrapper(
        Echo({"a": 50, "b": 50}),
        state_keep_prob=0.5,
        dropout_state_filter_visitor=lambda part: {"a": True, "b": False} if isinstance(part, dict) else True,
    )
    _, after = cell(ones(50), {"a": ones(50), "b": ones(50)})
    assert_dropped(after["a"], 0.5)
    assert torch.equal(after["b"], ones(50))


def test_nothing_is_dropped_in_evaluation_or_at_one() -> None:
    x, state = torch.randn(40, 50), torch.randn(40, 50)
    for variational in (False, True):
        cell = DropoutWrapper(Echo(50), 0.5, 0.5, 0.5, variational, 50).eval()
        assert leaves(consts(cell)) == []
        output, after = cell(x, state)
        assert torch.equal(output, x)
        assert torch.equal(after, state)
        kept = DropoutWrapper(Echo(50), variational_recurrent=variational)
        assert torch.equal(kept(x, state)[0], x)


def test_probability_zero_drops_everything() -> None:
    output, state = DropoutWrapper(Echo(50), 1.0, 0.0, 0.0)(ones(50), ones(50))
    assert not output.any()
    assert not state.any()


def test_output_and_h_are_dropped_independently() -> None:
    cell = DropoutWrapper(Echo(50), 1.0, 0.5, 0.5)
    output, state = cell(ones(50), ones(50))
    assert not torch.equal(output, state)


def test_the_seed_decides() -> None:
    cell = DropoutWrapper(Echo(50), 0.5, 0.5, 0.5)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(cell(ones(50), ones(50)))
    assert all(torch.equal(a, b) for a, b in zip(leaves(runs[0]), leaves(runs[1])))


class TestVariational:
    def test_one_mask_per_row_for_all_steps(self) -> None:
        cell = DropoutWrapper(Echo(50), 0.5, 0.6, 0.7, True, 50)
        masks = consts(cell)
        assert isinstance(masks, DropoutMasks)
        assert_dropped(masks.inputs, 0.5)
        assert_dropped(masks.outputs, 0.6)
        assert_dropped(masks.state[0], 0.7)
        assert not torch.equal(masks.inputs[0], masks.inputs[1])
        for x in (ones(50), 2 * ones(50)):
            output, state = cell(x, x, masks)
            assert torch.equal(output, x * masks.inputs * masks.outputs)
            assert torch.equal(state, x * masks.state[0])

    def test_shared_mask_is_tensorflows(self) -> None:
        masks = consts(DropoutWrapper(Echo(50), 0.5, 0.6, 0.7, True, 50, shared_mask=True))
        for mask in leaves(masks):
            assert mask.shape[0] == 40
            assert torch.equal(mask, mask[:1].expand_as(mask))

    def test_c_of_an_lstm_has_no_mask(self) -> None:
        cell = DropoutWrapper(MultiRNNCell([LSTMCell(5), GRUCell(7)]), 1.0, 0.5, 0.5, True)
        masks = consts(cell)
        assert masks.inputs == ()
        assert [mask.shape[1] for mask in masks.state] == [5, 7]
        assert masks.outputs.shape == (40, 7)
        _, ((c, h), g) = cell(torch.randn(40, 3), cell.initial_state(40), masks)
        assert c.all()
        assert torch.equal(h == 0, masks.state[0] == 0)
        assert torch.equal(g == 0, masks.state[1] == 0)

    def test_only_one_kind_at_a_time(self) -> None:
        assert [len(leaves(m)) for m in consts(DropoutWrapper(Echo(50), 1.0, 1.0, 0.5, True))] == [0, 1, 0, 0]
        assert [len(leaves(m)) for m in consts(DropoutWrapper(Echo(50), 1.0, 0.5, 1.0, True))] == [0, 0, 1, 0]

    def test_nested_inputs(self) -> None:
        cell = DropoutWrapper(Echo(2), 0.5, 1.0, 1.0, True, {"a": 50, "b": torch.Size([20, 3])})
        x = {"a": ones(50), "b": ones(20, 3)}
        masks = consts(cell)
        seen, _ = cell(x, ones(2), masks)
        assert torch.equal(seen["a"], masks.inputs["a"])
        assert masks.inputs["b"].shape == (40, 20, 3)

    def test_wrappers_of_wrappers(self) -> None:
        cell = DropoutWrapper(DropoutWrapper(Echo(50), 1.0, 1.0, 0.5, True), 1.0, 1.0, 0.5, True)
        masks = consts(cell)
        _, state = cell(ones(50), ones(50), masks)
        assert torch.equal(state, masks.state[0] * masks.cell.state[0])

    def test_dtype_follows(self) -> None:
        cell = DropoutWrapper(Echo(50), 0.5, 0.5, 0.5, True, 50)
        masks = cell.row_consts(4, torch.float64, CPU)
        assert {mask.dtype for mask in leaves(masks)} == {torch.float64}

    def test_a_loop_must_draw_the_masks(self) -> None:
        cell = DropoutWrapper(GRUCell(4), 1.0, 0.5, 1.0, True)
        with pytest.raises(ValueError, match="masks of a sequence are drawn before its first step"):
            cell(torch.randn(2, 3), torch.zeros(2, 4))
        cell.eval()(torch.randn(2, 3), torch.zeros(2, 4))

    def test_gradients_are_masked(self) -> None:
        cell = DropoutWrapper(Echo(50), 0.5, 1.0, 1.0, True, 50)
        masks = consts(cell)
        x = ones(50).requires_grad_()
        cell(x, ones(50), masks)[0].sum().backward()
        assert torch.equal(x.grad, masks.inputs)


def test_bad_options() -> None:
    for name in ("input_keep_prob", "output_keep_prob", "state_keep_prob"):
        for bad in (1.5, -0.1, float("nan")):
            with pytest.raises(ValueError, match=f"{name} must be between 0 and 1"):
                DropoutWrapper(GRUCell(3), **{name: bad})
    with pytest.raises(ValueError, match="pass input_size="):
        DropoutWrapper(GRUCell(3), 0.5, variational_recurrent=True)
    with pytest.raises(ValueError, match="shared_mask is a kind of variational mask"):
        DropoutWrapper(GRUCell(3), 0.5, shared_mask=True)
    with pytest.raises(TypeError, match="dropout_state_filter_visitor must be callable"):
        DropoutWrapper(GRUCell(3), dropout_state_filter_visitor=True)  # type: ignore[arg-type]


def test_prints() -> None:
    assert "state_keep_prob=0.5" in repr(DropoutWrapper(GRUCell(3), state_keep_prob=0.5))


def test_masks_keep_the_structure_of_leaves() -> None:
    masks = consts(DropoutWrapper(Echo(50), 0.5, 0.5, 0.5, True, 50))
    assert isinstance(map_leaves(lambda leaf: leaf[:3], masks), DropoutMasks)


def test_masks_have_the_dtype_of_the_run() -> None:
    """TensorFlow wants the dtype named with variational dropout; it may be, as the argument after the input size."""
    named = DropoutWrapper(Echo(50), 0.5, 1.0, 0.5, True, 50, torch.float32)
    assert {mask.dtype for mask in leaves(consts(named))} == {torch.float32}
    assert {mask.dtype for mask in leaves(named.row_consts(40, torch.float64, CPU))} == {torch.float64}
