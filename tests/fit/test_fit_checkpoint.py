"""Checkpoints and files: what goes in comes out, whole files only, no pickle."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from throughtime.fit.checkpoint import SafeCheckpoint, load_tensors, save_tensors
from throughtime.fit.errors import FitError
from throughtime.fit.files import replacing, write_text


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_nested_values_come_back_as_they_were(tmp_path: Path) -> None:
    value = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}, 1: {}},
        "betas": (0.9, 0.999),
        "ids": torch.tensor([1, 2], dtype=torch.int64),
        "half": torch.zeros(2, dtype=torch.bfloat16),
        "history": [{"epoch": 1, "loss": 0.1 + 0.2, "none": None, "best": True}],
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "text": "über",
    }
    SafeCheckpoint().save_checkpoint(value, tmp_path / "c.safetensors")
    assert same(value, SafeCheckpoint().load_checkpoint(tmp_path / "c.safetensors"))


def test_a_shared_tensor_is_saved_twice_and_a_view_alone(tmp_path: Path) -> None:
    big = torch.arange(1000.0)
    save_tensors(tmp_path / "w.safetensors", {"a": big[:2], "b": big[:2]}, {})
    tensors, _ = load_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["a"], tensors["b"])
    assert (tmp_path / "w.safetensors").stat().st_size < 500


def test_a_checkpoint_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    SafeCheckpoint().save_checkpoint({"x": 1}, path)
    SafeCheckpoint().remove_checkpoint(path)
    assert not path.exists()


def test_a_value_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a checkpoint holds tensors and plain values") as caught:
        SafeCheckpoint().save_checkpoint({"a": [object()]}, tmp_path / "c.safetensors")
    assert "checkpoint.a.0 is a object" in str(caught.value)


def test_weights_are_no_checkpoint(tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(FitError, match="but not the state of a run"):
        SafeCheckpoint().load_checkpoint(tmp_path / "w.safetensors")


def test_half_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FitError, match="is not a whole safetensors file"):
        load_tensors(path)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A file that grows past it fails as on a full disk (Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.zeros(10)}, {})
    before = path.read_bytes()
    with file_size_limit(4096), pytest.raises(FitError, match="Nothing half-written was left") as caught:
        save_tensors(path, {"a": torch.zeros(10_000)}, {})
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_while_writing_leaves_the_good_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "good")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ba")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "good"
    assert os.listdir(tmp_path) == [path.name]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".x.txt.part").write_text("half of a fi")
    write_text(tmp_path / "x.txt", "whole")
    assert (tmp_path / "x.txt").read_text() == "whole"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_the_metadata_is_readable_without_torch(tmp_path: Path) -> None:
    SafeCheckpoint().save_checkpoint({"epoch": 4}, tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="numpy") as file:
        assert file.metadata() == {"values": '{"epoch": 4}'}
