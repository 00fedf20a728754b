"""A call's tensors and what is around it -> why machine code cannot run it, whatever the cell computes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from throughtime._nested import Nested, leaves, leaves_with_paths

__all__ = ["has_no_numbers", "limit_around", "limit_of"]

_PLAIN = frozenset({Tensor, nn.Parameter, nn.Buffer})
_READABLE = frozenset({torch.float32, torch.float64, torch.bool, torch.int64, torch.int32})


def limit_around() -> str | None:
    """Of what is active while the call runs."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform (grad, vmap, jvp ...) is at work, which sees PyTorch's operators only"
    if torch._C._len_torch_dispatch_stack() and not all(map(_heeds_noise_only, _get_current_dispatch_mode_stack())):
        return "a torch dispatch mode is active, which sees PyTorch's operators only"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are on, and machine code has backward ones only"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording, which sees PyTorch's operators only"
    if torch._C._len_torch_function_stack() and torch.get_default_device().type != "cpu":
        return f"torch.set_default_device puts new tensors on {torch.get_default_device()}"
    if _has_any_global_hook():
        return "a global module hook is registered, which runs at every step"
    return None


def _heeds_noise_only(mode: Any) -> bool:
    """As the portable loop's own mode, inside whose steps another loop may run."""
    return getattr(mode, "changes_noise_only", False)


def limit_of(given: Iterable[tuple[str, Nested]]) -> str | None:
    """Of the tensors, which come with a name for each nested value."""
    given = tuple(given)
    autocast = torch.is_autocast_enabled("cpu")
    if all(_is_plain(leaf, autocast) for _, value in given for leaf in leaves(value)):
        return None
    named = (pair for name, value in given for pair in leaves_with_paths(value, name))
    return next(_limit_of_tensor(name, leaf) for name, leaf in named if not _is_plain(leaf, autocast))


def has_no_numbers(value: Nested) -> bool:
    """Whether the tensors have shapes only, so that nothing is computed, by any backend."""
    with torch._C.DisableTorchFunction():  # a step that is traced is told that its tensors are on the CPU
        return any(isinstance(leaf, FakeTensor) or leaf.is_meta for leaf in leaves(value))


def _is_plain(leaf: Any, autocast: bool) -> bool:
    return (
        type(leaf) in _PLAIN
        and leaf.device.type == "cpu"
        and leaf.layout is torch.strided
        and (leaf.dtype in _READABLE or (autocast and leaf.dtype == torch.bfloat16))
        and not leaf.is_neg()
    )


def _limit_of_tensor(name: str, leaf: Tensor) -> str:
    if type(leaf) not in _PLAIN:
        return f"{name} is a {type(leaf).__name__}, a kind of tensor with operators of its own"
    if leaf.device.type != "cpu":
        return f"{name} is on {leaf.device}, and machine code is made for the CPU"
    if leaf.layout is not torch.strided:
        return f"{name} is not a dense tensor ({leaf.layout})"
    if leaf.is_neg():
        return f"{name} is a view that stands for the negative of its numbers"
    return f"{name} holds {leaf.dtype}, and machine code reads float32, float64, bool, int32 and int64"
