"""A golden case -> what we compute for it, under the names of what TensorFlow computed.

A case is run as `RUNNERS[function](case, module, tensors, backend)`, which returns the results by name. Everything else
(weights in, loss, gradients out) is the same for all of them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import throughtime
from throughtime import cells
from throughtime.cells import contrib

__all__ = ["RUNNERS", "Case", "build_cell", "by_path", "fill", "find_cases", "play", "tolerance"]

HERE = Path(__file__).parent
Named = dict[str, Tensor]
Runner = Callable[["Case", Any, Named, str], Named]


@dataclass(frozen=True)
class Case:
    """One entry of the manifest and its arrays."""

    name: str
    function: str
    entry: dict[str, Any]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(HERE / self.entry["file"]) as file:
            return {key: file[key] for key in file.files}

    @property
    def call(self) -> dict[str, Any]:
        return self.entry["call"]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.call["float_type"])

    def under(self, root: str) -> Named:
        """The arrays called `root` or `root/...`, as new tensors."""
        return {
            key: torch.tensor(value) for key, value in self.arrays.items() if key == root or key.startswith(f"{root}/")
        }

    def unused(self) -> set[str]:
        """Weights that TensorFlow makes and never reads."""
        normed = self.entry["cell"].get("type") == "LayerNormLSTMCell" and self.entry["cell"].get("layer_norm")
        return {"weights/bias"} if normed else set()

    def expected(self) -> Named:
        """Every result and gradient that TensorFlow gave."""
        return {
            key: value
            for root in ("outputs", "final_state", "saved", "grad")
            for key, value in self.under(root).items()
        }


def find_cases(*functions: str) -> list[Case]:
    entries = json.loads((HERE / "manifest.json").read_text())
    return [Case(e["name"], e["function"], e) for e in entries if e["function"] in functions]


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference allowed, relative to the largest value of the array."""
    return {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]


def play(case: Case, backend: str) -> Named:
    """Run a case: results and the gradients of its loss, under TensorFlow's names."""
    module = _build(case.entry["cell"]).to(case.dtype)
    names = {
        key: parameter_name(module, key.removeprefix("weights/"))
        for key in case.under("weights")
        if key not in case.unused()
    }
    _load(module, {name: case.under("weights")[key] for key, name in names.items()})
    tensors = {**case.under("inputs"), **case.under("initial_state"), **case.under("memory")}
    for key, value in tensors.items():
        value.requires_grad_(f"grad/{key}" in case.arrays)
    results = RUNNERS[case.function](case, module, tensors, backend)
    if not any(key.startswith("grad/") for key in case.arrays):
        return results
    _loss(case, results).backward()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    leaves = {**tensors, **{key: parameters[name] for key, name in names.items()}}
    return results | {f"grad/{key}": leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


def build_cell(spec: dict[str, Any]) -> nn.Module:
    """`{"type": "MultiRNNCell", "cells": [...]}` -> our cell of that name, with those arguments."""
    options = {key: _built(value) for key, value in spec.items() if key != "type"}
    return getattr(cells if hasattr(cells, spec["type"]) else contrib, spec["type"])(**options)


def parameter_name(module: nn.Module, name: str) -> str:
    """TensorFlow's name of a variable, below the cell's scope -> ours.

    `cell_0/gates/kernel` -> `cells.0.gates.kernel`. A wrapper's own parameters keep their names, those of the cell
    inside are under `cell.`; where both have a name TensorFlow keeps the inner cell's scope, `lstm_cell/kernel`.
    """
    if stacked := re.match(r"cell_(\d+)/((?:fw|bw)/)?", name):
        k, side = stacked.groups()
        path = f"{side[:2]}.{k}" if side else f"cells.{k}"
        return f"{path}.{parameter_name(module.get_submodule(path), name[stacked.end() :])}"
    dotted = name.replace("/", ".")
    if dotted in dict(module.named_parameters()):
        return dotted
    head, _, rest = name.partition("/")
    if isinstance(module, nn.ModuleDict):
        return f"{head}.{parameter_name(module[head], rest)}"
    inner = rest if head.endswith("_cell") else name
    return f"cell.{parameter_name(module.get_submodule('cell'), inner)}"


def by_path(value: Any, root: str) -> Named:
    """A nested value -> its leaves by path, as in the files."""
    if isinstance(value, Tensor):
        return {root: value}
    fields = getattr(value, "_fields", None) or (value.keys() if isinstance(value, dict) else range(len(value)))
    parts = value.values() if isinstance(value, dict) else value
    return {path: leaf for field, part in zip(fields, parts) for path, leaf in by_path(part, f"{root}/{field}").items()}


def fill(like: Any, root: str, tensors: Named) -> Any:
    """The tensors below `root`, nested like `like`."""
    if isinstance(like, Tensor):
        return tensors[root]
    fields = getattr(like, "_fields", range(len(like)))
    parts = [fill(part, f"{root}/{field}", tensors) for field, part in zip(fields, like)]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _build(spec: Any) -> nn.Module:
    if "type" in spec:
        return build_cell(spec)
    return nn.ModuleDict({side: _built(spec[side]) for side in ("fw", "bw")})


def _built(value: Any) -> Any:
    if isinstance(value, dict) and "type" in value:
        return build_cell(value)
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return nn.ModuleList(map(build_cell, value))
    return value


def _load(module: nn.Module, weights: Named) -> None:
    """A weight that the case does not have keeps its initial value (a bias that TensorFlow never made, say)."""
    unknown = module.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown


def _loss(case: Case, results: Named) -> Tensor:
    cotangents = {
        re.sub("^cot_state", "final_state", key.replace("cot_outputs", "outputs")): value
        for key, value in {**case.under("cot_outputs"), **case.under("cot_state")}.items()
    }
    return torch.stack([(results[key] * value).sum().double() for key, value in cotangents.items()]).sum()


def _inputs(tensors: Named) -> Any:
    parts = {key: value for key, value in tensors.items() if key.startswith("inputs")}
    return parts["inputs"] if "inputs" in parts else tuple(parts[key] for key in sorted(parts))


def _start(case: Case, cell: Any, tensors: Named, root: str = "initial_state") -> Any:
    if not any(key.startswith("initial_state") for key in tensors):
        return None
    return fill(cell.initial_state(case.call["batch"]), root, tensors)


def _run_dynamic(case: Case, cell: Any, tensors: Named, backend: str) -> Named:
    outputs, state = throughtime.dynamic_rnn(
        cell,
        _inputs(tensors),
        case.call["sequence_length"],
        _start(case, cell, tensors),
        time_major=case.call["time_major"],
        backend=backend,  # type: ignore[arg-type]
    )
    return by_path(outputs, "outputs") | by_path(state, "final_state")


def _run_static(case: Case, cell: Any, tensors: Named, backend: str) -> Named:
    steps = list(_inputs(tensors).unbind(0))
    lengths = case.call["sequence_length"]
    outputs, state = throughtime.static_rnn(cell, steps, _start(case, cell, tensors), sequence_length=lengths)
    return {"outputs": torch.stack(outputs)} | by_path(state, "final_state")


def _run_state_saving(case: Case, cell: Any, tensors: Named, backend: str) -> Named:
    """TensorFlow's saver starts from and keeps the state between calls; the state that it keeps is the final one."""
    results = _run_static(case, cell, tensors, backend)
    saved = {key.replace("final_state", "saved"): value for key, value in results.items() if "state" in key}
    return results | saved


def _run_bidirectional(case: Case, both: Any, tensors: Named, backend: str) -> Named:
    outputs, states = throughtime.bidirectional_dynamic_rnn(
        both["fw"],
        both["bw"],
        _inputs(tensors),
        case.call["sequence_length"],
        _start(case, both["fw"], tensors, "initial_state/fw"),
        _start(case, both["bw"], tensors, "initial_state/bw"),
        time_major=case.call["time_major"],
        backend=backend,  # type: ignore[arg-type]
    )
    sides = ("fw", "bw")
    return by_path(dict(zip(sides, outputs)), "outputs") | by_path(dict(zip(sides, states)), "final_state")


def _run_static_bidirectional(case: Case, both: Any, tensors: Named, backend: str) -> Named:
    results = _run_bidirectional(case, both, tensors, backend)
    return results | {"outputs": torch.cat([results["outputs/fw"], results["outputs/bw"]], -1)}


def _run_stacked_bidirectional(case: Case, both: Any, tensors: Named, backend: str) -> Named:
    results: Named = {}
    layer = tensors
    for k, pair in enumerate(zip(both["fw"], both["bw"])):
        results |= _run_static_bidirectional(case, dict(zip(("fw", "bw"), pair)), layer, backend)
        results |= {
            re.sub("(fw|bw)", rf"\1/{k}", key): value
            for key, value in results.items()
            if re.match(r"final_state/(fw|bw)(/[ch])?$", key)
        }
        layer = {"inputs": results["outputs"]}
    return results


RUNNERS: dict[str, Runner] = {
    "dynamic_rnn": _run_dynamic,
    "static_rnn": _run_static,
    "static_state_saving_rnn": _run_state_saving,
    "bidirectional_dynamic_rnn": _run_bidirectional,
    "static_bidirectional_rnn": _run_static_bidirectional,
    "stack_bidirectional_dynamic_rnn": _run_stacked_bidirectional,
}
