"""Nested Python values with tensors <-> one safetensors file: the tensors, and JSON for all the rest. No pickle.

Lightning's own checkpoints are pickles, which run code when they are loaded; this is its `CheckpointIO` without them.
"""

import json
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from throughtime.fit.errors import FitError
from throughtime.fit.files import write_bytes

__all__ = ["SafeCheckpoint", "load_tensors", "save_tensors"]

TENSOR, TUPLE, PAIRS = "__tensor__", "__tuple__", "__pairs__"
VALUES = "values"  # the key of the JSON in the file's header


class SafeCheckpoint(CheckpointIO):
    """What Lightning calls to write and read a checkpoint; a reader sees the old file or the new one, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        tensors: dict[str, Tensor] = {}
        values = _pack(checkpoint, "checkpoint", tensors)
        save_tensors(Path(path), tensors, {VALUES: json.dumps(values)})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        tensors, metadata = load_tensors(Path(path))
        if VALUES not in metadata:
            raise FitError(f"{path} holds weights, but not the state of a run.")
        return _unpack(json.loads(metadata[VALUES]), tensors)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink()


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(apart, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FitError(f"{path} is not a whole safetensors file: {error}") from error


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A nested value -> JSON, its tensors put aside under their path."""
    if isinstance(value, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        packed = [[key, _pack(part, f"{path}.{key}", tensors)] for key, part in value.items()]
        return dict(packed) if all(isinstance(key, str) for key in value) else {PAIRS: packed}
    if isinstance(value, (list, tuple)):
        parts = [_pack(part, f"{path}.{i}", tensors) for i, part in enumerate(value)]
        return {TUPLE: parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values; {path} is a {type(value).__name__}.")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]]
    if TUPLE in value:
        return tuple(_unpack(part, tensors) for part in value[TUPLE])
    if PAIRS in value:
        return {key: _unpack(part, tensors) for key, part in value[PAIRS]}
    return {key: _unpack(part, tensors) for key, part in value.items()}
