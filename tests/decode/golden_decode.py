"""A golden case of decoding -> what we compute for it, under the names of what TensorFlow computed."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from golden.cases import HERE, Case, build_cell, by_path, fill
from throughtime.cells._parameters import Dense, zeros
from throughtime.decode import attention
from throughtime.decode.beam_decoder import BeamSearchDecoder
from throughtime.decode.decoder import BasicDecoder
from throughtime.decode.dynamic import dynamic_decode
from throughtime.decode.helpers import GreedyEmbeddingHelper, ScheduledEmbeddingTrainingHelper, TrainingHelper
from throughtime.decode.tree import tile_batch
from throughtime.decode.wrapper import AttentionWrapper

Named = dict[str, Tensor]


def find_decode_cases(*functions: str) -> list[Case]:
    entries = json.loads((HERE / "decode" / "manifest.json").read_text())
    return [Case(e["name"], e["function"], e) for e in entries if e["function"] in functions]


class Model(nn.Module):
    """Everything of a case that has weights, under the names of the files."""

    def __init__(self, case: Case, memory: Tensor | None, lengths: Tensor | None) -> None:
        super().__init__()
        spec, decoder = case.entry["cell"], case.entry.get("decoder") or {}
        self.cell = build_attention(spec, memory, lengths) if spec["type"] == "AttentionWrapper" else build_cell(spec)
        units = decoder.get("output_layer")
        bias = zeros if decoder.get("output_layer_bias") else None
        self.output_layer = Dense(units, bias, name="output_layer") if units else None
        if "weights/embedding" in case.arrays:
            self.embedding = nn.Parameter(torch.zeros(case.arrays["weights/embedding"].shape))
        if "encoder" in case.entry:
            self.encoder = build_cell(case.entry["encoder"]["cell"])

    def name_of(self, key: str) -> str:
        """`weights/query_layer/kernel` -> `cell.attention_mechanism.query_layer.kernel`."""
        dotted = key.removeprefix("weights/").replace("/", ".")
        own = ("cell.", "output_layer.", "embedding", "encoder.")
        if not dotted.startswith(own):
            return f"cell.{dotted}" if dotted.startswith("attention_layer") else f"cell.attention_mechanism.{dotted}"
        return f"cell.{dotted}" if dotted.startswith("cell.") and isinstance(self.cell, AttentionWrapper) else dotted

    def load(self, weights: Named) -> None:
        result = self.load_state_dict({self.name_of(key): value for key, value in weights.items()}, strict=False)
        assert not result.unexpected_keys, result.unexpected_keys
        assert not result.missing_keys, result.missing_keys


def build_attention(spec: dict[str, Any], memory: Tensor | None, lengths: Tensor | None) -> AttentionWrapper:
    options = {key: value for key, value in spec["attention_mechanism"].items() if key != "type"}
    mechanism = getattr(attention, spec["attention_mechanism"]["type"])(
        memory=memory, memory_sequence_length=lengths, **options
    )
    names = ("attention_layer_size", "alignment_history", "output_attention")
    return AttentionWrapper(build_cell(spec["cell"]), mechanism, **{name: spec[name] for name in names})


def play_decode(case: Case, *, tf1_exact: bool = True) -> Named:
    """Run a case of dynamic_decode: results and the gradients of its loss, under TensorFlow's names."""
    tensors = {key: value for root in ("inputs", "memory", "initial_state") for key, value in case.under(root).items()}
    for key, value in tensors.items():
        value.requires_grad_(f"grad/{key}" in case.arrays)
    beams = (case.entry.get("decoder") or {}).get("beam_width", 1)
    memory, lengths = tensors.get("memory"), case.under("memory_sequence_length").get("memory_sequence_length")
    if memory is not None and "beam_width" in case.entry["decoder"]:
        memory, lengths = tile_batch((memory, lengths), beams)
    model = Model(case, memory, lengths)
    model.load(case.under("weights"))
    decoder = build_decoder(case, model, tensors, beams, tf1_exact)
    outputs, state, lengths = dynamic_decode(
        decoder,
        output_time_major=case.call.get("output_time_major", False),
        impute_finished=case.call["impute_finished"],
        maximum_iterations=case.call.get("maximum_iterations"),
    )
    results = by_path(outputs, "outputs") | by_path(state, "final_state") | {"final_sequence_lengths": lengths}
    return results | gradients(case, model, tensors, results)


def gradients(case: Case, model: Model, tensors: Named, results: Named, extra: Any = 0.0) -> Named:
    if not any(key.startswith("grad/") for key in case.arrays):
        return {}
    cotangents = {**case.under("cot_outputs"), **case.under("cot_state")}
    loss: Tensor = extra + sum(
        (results[key.replace("cot_outputs", "outputs").replace("cot_state", "final_state")] * value).sum()
        for key, value in cotangents.items()
    )
    torch.testing.assert_close(loss.double(), case.under("loss")["loss"], rtol=1e-5, atol=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    leaves = {**tensors, **{key: parameters[model.name_of(key)] for key in case.under("weights")}}
    return {f"grad/{key}": leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def build_decoder(case: Case, model: Model, tensors: Named, beams: int, tf1_exact: bool) -> Any:
    spec = case.entry["decoder"]
    state = start(case, model, tensors)
    if spec["type"] == "BeamSearchDecoder":
        options = {key: spec[key] for key in ("length_penalty_weight", "coverage_penalty_weight")}
        state = tile_start(model, state, case, beams)
        tokens = case.under("start_tokens")["start_tokens"]
        return BeamSearchDecoder(
            model.cell, model.embedding, tokens, spec["end_token"], state, beams, model.output_layer,
            tf1_exact=tf1_exact, **options,
        )  # fmt: skip
    return BasicDecoder(model.cell, build_helper(case, model, tensors), state, model.output_layer)


def build_helper(case: Case, model: Model, tensors: Named) -> Any:
    spec = case.entry["helper"]
    if spec["type"] == "GreedyEmbeddingHelper":
        tokens = case.under("start_tokens")["start_tokens"]
        return GreedyEmbeddingHelper(model.embedding, tokens, spec["end_token"])
    lengths, time_major = case.call["sequence_length"], spec.get("time_major", False)
    if spec["type"] == "TrainingHelper":
        return TrainingHelper(tensors["inputs"], lengths, time_major)
    assert spec["type"] == "ScheduledEmbeddingTrainingHelper"
    probability = spec["sampling_probability"]
    return ScheduledEmbeddingTrainingHelper(tensors["inputs"], lengths, model.embedding, probability, time_major)


def start(case: Case, model: Model, tensors: Named) -> Any:
    rows = case.call["batch"]
    if isinstance(model.cell, AttentionWrapper):
        if not any(key.startswith("initial_state/cell_state") for key in tensors):
            return None
        like = model.cell.cell.initial_state(rows)
        cell_state = fill(like, "initial_state/cell_state", tensors)
        if "beam_width" in case.entry["decoder"]:
            return cell_state
        return model.cell.initial_state(rows, torch.float32).clone(cell_state=cell_state)
    if not any(key.startswith("initial_state") for key in tensors):
        return None
    return fill(model.cell.initial_state(rows), "initial_state", tensors)


def tile_start(model: Model, state: Any, case: Case, beams: int) -> Any:
    rows = case.call["batch"]
    if isinstance(model.cell, AttentionWrapper):
        zero = model.cell.initial_state(rows * beams, torch.float32)
        return zero if state is None else zero.clone(cell_state=tile_batch(state, beams))
    return tile_batch(model.cell.initial_state(rows, torch.float32) if state is None else state, beams)
