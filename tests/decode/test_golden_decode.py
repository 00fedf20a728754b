"""Every golden case of decoding, attention and losses -> compared with TensorFlow 1.15, gradients included."""

import pytest
import torch
from torch import Tensor

from decode.golden_decode import Model, find_decode_cases, gradients, play_decode
from golden.cases import Case, build_cell, by_path
from throughtime import dynamic_rnn
from throughtime.decode.decoder import BasicDecoder
from throughtime.decode.dynamic import dynamic_decode
from throughtime.decode.helpers import TrainingHelper
from throughtime.decode.loss import sequence_loss, sequence_mask
from throughtime.decode.monotonic import hardmax, monotonic_attention, safe_cumprod
from throughtime.decode.raw import raw_rnn
from throughtime.decode.tree import gather_tree, tile_batch


def cases(function: str) -> list:
    return [pytest.param(case, id=case.name) for case in find_decode_cases(function)]


def assert_near(name: str, got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if not want.is_floating_point():
        assert torch.equal(got.to(want.dtype), want), name
        return
    largest = want[want.isfinite()].abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(
        got.detach(), want, rtol=1e-5, atol=1e-5 * max(largest, 1e-3), msg=lambda m: f"{name}: {m}"
    )


@pytest.mark.parametrize("case", cases("dynamic_decode"))
def test_dynamic_decode_agrees_with_tensorflow(case: Case) -> None:
    got = play_decode(case)
    expected = case.expected() | case.under("final_sequence_lengths")
    assert len(expected) >= 4
    for name, want in expected.items():
        if name.endswith("/time"):
            continue  # ours has none; it is the number of steps, the history's first axis
        if name.endswith("alignment_history") and case.call["impute_finished"]:
            # Finished rows are left out; TensorFlow goes on noting weights for them.
            mask = sequence_mask(case.call["sequence_length"], want.shape[0]).T[:, :, None]
            want = want * mask
        assert name in got, f"{name} has no gradient, or was not returned"
        assert_near(name, got[name], want)


def test_the_history_is_as_long_as_tensorflow_counts() -> None:
    """TensorFlow's state counts steps in `time`; ours has no such entry."""
    kept = [c for c in find_decode_cases("dynamic_decode") if c.entry["cell"].get("alignment_history")]
    assert len(kept) >= 8
    for case in kept:
        (time,) = [key for key in case.arrays if key.endswith("/time")]
        history = play_decode(case)[time.replace("/time", "/alignment_history")]
        assert len(history) == int(case.arrays[time]), case.name


@pytest.mark.parametrize("case", cases("encoder_decoder_loss"))
def test_encoder_decoder_agrees_with_tensorflow(case: Case) -> None:
    arrays = (
        case.under("source_ids") | case.under("target_ids") | case.under("source_length") | case.under("target_length")
    )
    model = Model(case, torch.zeros(3, 6, 5), None)
    model.load(case.under("weights"))
    source = torch.nn.functional.embedding(arrays["source_ids"], model.embedding)
    memory, encoded = dynamic_rnn(model.encoder, source, arrays["source_length"])
    model.cell.attention_mechanism.set_memory(memory, arrays["source_length"])
    targets = arrays["target_ids"].long()
    go = torch.cat([torch.ones(3, 1, dtype=torch.long), targets[:, :-1]], 1)
    helper = TrainingHelper(torch.nn.functional.embedding(go, model.embedding), arrays["target_length"])
    begin = model.cell.initial_state(3, torch.float32).clone(cell_state=encoded)
    decoder = BasicDecoder(model.cell, helper, begin, model.output_layer)
    outputs, state, lengths = dynamic_decode(decoder, impute_finished=True)
    mask = sequence_mask(arrays["target_length"], 5, torch.float32)
    loss = sequence_loss(outputs.rnn_output, targets, mask)
    results = by_path(outputs, "outputs") | by_path(state, "final_state")
    results |= {"final_sequence_lengths": lengths, "memory": memory, "sequence_loss": loss}
    results |= gradients(case, model, {}, results, 3 * loss)
    expected = case.expected() | {
        key: case.under(key)[key] for key in ("memory", "sequence_loss", "final_sequence_lengths")
    }
    expected["final_state/alignment_history"] = expected["final_state/alignment_history"] * mask.T[:, :, None]
    for name, want in expected.items():
        if not name.endswith("/time"):
            assert_near(name, results[name], want)


@pytest.mark.parametrize("case", cases("raw_rnn"))
def test_raw_rnn_agrees_with_tensorflow(case: Case) -> None:
    cell = build_cell(case.entry["cell"])
    cell.load_state_dict({key.removeprefix("weights/"): value for key, value in case.under("weights").items()})
    inputs = case.under("inputs")["inputs"].requires_grad_()
    lengths = torch.tensor(case.call["sequence_length"])

    def loop_fn(time, output, state, loop_state):
        finished = lengths <= time
        step = inputs[time] if time < len(inputs) else torch.zeros_like(inputs[0])
        if output is None:
            emit = (torch.zeros(2), torch.zeros((), dtype=torch.int32))
            return finished, step, cell.initial_state(4), emit, (torch.zeros(4, 5), 0)
        emit = (2 * output[:, :2] + time, (output.argmax(1) + 1).int())
        return finished, step, state, emit, (loop_state[0] + output.detach(), loop_state[1] + 1)

    outputs, state, loop_state = raw_rnn(cell, loop_fn)
    results = by_path(outputs, "outputs") | by_path(state, "final_state")
    results["final_loop_state/0"], results["final_loop_state/1"] = loop_state[0], torch.tensor(loop_state[1])
    cotangents = {**case.under("cot_outputs"), **case.under("cot_state")}
    loss = sum(
        (results[key.replace("cot_outputs", "outputs").replace("cot_state", "final_state")] * value).sum()
        for key, value in cotangents.items()
    )
    loss.backward()
    results |= {f"grad/weights/{name}": weight.grad for name, weight in cell.named_parameters()}
    results["grad/inputs"] = inputs.grad
    for name, want in (case.expected() | case.under("final_loop_state")).items():
        assert_near(name, results[name], want)


@pytest.mark.parametrize(
    "combination", [f"t_{t}_b_{b}" for t in ("none", "avg", "sum") for b in ("none", "avg", "sum")]
)
def test_sequence_loss_agrees_with_tensorflow(combination: str) -> None:
    (case,) = find_decode_cases("sequence_loss")
    t, b = combination.split("_")[1::2]
    arrays = {key: torch.tensor(value) for key, value in case.arrays.items()}
    logits, weights = arrays["logits"].requires_grad_(), arrays["weights"].requires_grad_()
    loss = sequence_loss(
        logits, arrays["targets"], weights, t == "avg", b == "avg", t == "sum", b == "sum", tf1_exact=True
    )
    assert_near("loss", loss, arrays[f"loss/{combination}"])
    (loss * arrays[f"cot/{combination}"]).sum().backward()
    assert_near("grad/logits", logits.grad, arrays[f"grad/logits/{combination}"])
    assert_near("grad/weights", weights.grad, arrays[f"grad/weights/{combination}"])


def test_gather_tree_agrees_with_tensorflow() -> None:
    (case,) = find_decode_cases("gather_tree")
    arrays = {key: torch.tensor(value) for key, value in case.arrays.items()}
    for k in range(case.call["cases"]):
        names = ("step_ids", "parent_ids", "max_sequence_lengths", "end_token")
        ids, parents, lengths, end = (arrays[f"{k}/{name}"] for name in names)
        assert_near(str(k), gather_tree(ids, parents, lengths, int(end)), arrays[f"{k}/output"])


@pytest.mark.parametrize("mode", ["recursive", "parallel", "hard"])
def test_monotonic_attention_agrees_with_tensorflow(mode: str) -> None:
    (case,) = find_decode_cases("monotonic_attention")
    arrays = {key: torch.tensor(value) for key, value in case.arrays.items()}
    root = "hard/" if mode == "hard" else ""
    p, previous = arrays[f"{root}p_choose_i"].requires_grad_(), arrays[f"{root}previous_attention"].requires_grad_()
    got = monotonic_attention(p, previous, mode)
    assert_near(mode, got, arrays[f"attention/{mode}"])
    if mode != "hard":
        (got * arrays[f"cot/{mode}"]).sum().backward()
        assert_near("p", p.grad, arrays[f"grad/p_choose_i/{mode}"])
        assert_near("previous", previous.grad, arrays[f"grad/previous_attention/{mode}"])


def test_the_small_functions_agree_with_tensorflow() -> None:
    (case,) = find_decode_cases("monotonic_attention")
    arrays = {key: torch.tensor(value) for key, value in case.arrays.items()}
    x = arrays["safe_cumprod/x"]
    assert_near("inclusive", safe_cumprod(x, 1), arrays["safe_cumprod/inclusive"])
    assert_near("exclusive", safe_cumprod(x, 1, exclusive=True), arrays["safe_cumprod/exclusive"])
    assert_near("hardmax", hardmax(arrays["hardmax/logits"]), arrays["hardmax/output"])
    assert_near("tile_batch", tile_batch(arrays["tile_batch/input"], 3), arrays["tile_batch/output"])
