"""Compound operators -> the few that a graph may hold, as plain PyTorch code that is traced in their place."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.nn import functional as F

__all__ = ["FORMULAS", "IN_PYTHON", "NEAREST"]

aten = torch.ops.aten

NEAREST = tuple(f"{name}{axes}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for axes in (1, 2, 3))
"""Operators that resize images."""


def _gates(x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Any, b_h: Any) -> tuple[Tensor, Tensor]:
    return F.linear(x, w_x, b_x), F.linear(h, w_h, b_h)


def _lstm_cell(x: Tensor, hx: Any, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> tuple[Tensor, Tensor]:
    from_x, from_h = _gates(x, hx[0], w_x, w_h, b_x, b_h)
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = torch.sigmoid(f) * hx[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_cell(x: Tensor, h: Tensor, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> Tensor:
    from_x, from_h = _gates(x, h, w_x, w_h, b_x, b_h)
    (r_x, z_x, n_x), (r_h, z_h, n_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return n + torch.sigmoid(z_x + z_h) * (h - n)


def _rnn_tanh_cell(x: Tensor, h: Tensor, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> Tensor:
    return torch.tanh(torch.add(*_gates(x, h, w_x, w_h, b_x, b_h)))


def _rnn_relu_cell(x: Tensor, h: Tensor, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> Tensor:
    return torch.relu(torch.add(*_gates(x, h, w_x, w_h, b_x, b_h)))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In place or not makes no difference to what is returned, and the trace has no use for the old value."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    dropped = aten.native_dropout.default(input, p, True)[0]
    return input.copy_(dropped) if inplace else dropped


def _torch_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(input, p, train)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """The operator inside adds its mask to the scores: one that says what is seen must become one to add first."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        unseen = attn_mask.logical_not()
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(unseen, float("-inf"))
    return aten._scaled_dot_product_attention_math.default(query, key, value, attn_mask, *args, **kwargs)[0]


def _bilinear(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y[o] = sum over i, j of x[i] weight[o, i, j] z[j]"""
    outputs, i, j = weight.shape
    partly = (x @ weight.permute(1, 0, 2).reshape(i, outputs * j)).unflatten(-1, (outputs, j))
    y = (partly * z.unsqueeze(-2)).sum(-1)
    return y if bias is None else y + bias


def _new_tensor(like: Tensor, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
    """PyTorch would put the numbers where `like` is, which has none."""
    return torch.as_tensor(data).to(like.dtype if dtype is None else dtype).clone()


IN_PYTHON: dict[Any, Callable[..., Any]] = {
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
    torch.rnn_tanh_cell: _rnn_tanh_cell,
    torch.rnn_relu_cell: _rnn_relu_cell,
    torch.bilinear: _bilinear,
    torch.dropout: _torch_dropout,
    F.dropout: _dropout,
    Tensor.new_tensor: _new_tensor,
    F.scaled_dot_product_attention: _attention,
}
"""Torch functions that write in place inside, choose a fused kernel without a gradient formula of its own, or look at
the device of their tensors."""


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(a @ b, alpha) + _scaled(bias, beta)


def _addmv(bias: Tensor, a: Tensor, v: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled(aten.mv(a, v), alpha) + _scaled(bias, beta)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _tanh_backward(d_y: Tensor, y: Tensor) -> Tensor:
    return d_y * (1 - y * y)


def _sigmoid_backward(d_y: Tensor, y: Tensor) -> Tensor:
    return d_y * (y * (1 - y))


def _threshold_backward(d_y: Tensor, x: Tensor, threshold: float) -> Tensor:
    return torch.where(x <= threshold, 0, d_y)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _axes(x, dim)
    count = 1
    for d in dims:
        count *= x.shape[d]
    return x.sum(dims, keepdim=keepdim, dtype=dtype) / count


def _var(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _std(x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


def _var_mean(
    x: Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = _axes(x, dim)
    mean = _mean(x, dims, keepdim=True)
    centred = x - mean
    count = 1
    for d in dims:
        count *= x.shape[d]
    variance = (centred * centred).sum(dims, keepdim=keepdim) / (count - (1 if correction is None else correction))
    return variance, mean if keepdim else _mean(x, dims)


def _std_mean(x: Tensor, dim: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
    variance, mean = _var_mean(x, dim, **options)
    return variance.sqrt(), mean


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    variance, mean = _var_mean(x, dims, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    y = (x - mean) * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, scale


def _layer_norm_backward(
    d_y: Tensor, x: Tensor, shape: Any, mean: Tensor, scale: Tensor, weight: Any, bias: Any, wanted: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    first = x.dim() - len(shape)
    inner, outer = list(range(first, x.dim())), list(range(first))
    normal = (x - mean) * scale
    d_normal = d_y if weight is None else d_y * weight
    d_x = d_weight = d_bias = None
    if wanted[0]:
        d_x = d_normal - _mean(d_normal, inner, True) - normal * _mean(d_normal * normal, inner, True)
        d_x = d_x * scale
    if wanted[1]:
        d_weight = (d_y * normal).sum(outer) if outer else d_y * normal
    if wanted[2]:
        d_bias = d_y.sum(outer) if outer else d_y
    return d_x, d_weight, d_bias


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Any, channels: int, each: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer norm of each group. `each`: the elements of a channel."""
    size = channels // groups * each
    y, mean, scale = _layer_norm(x.reshape(x.shape[0], groups, size), [size], None, None, eps)
    weight, bias = (None if part is None else _along_channels(part, x) for part in (weight, bias))
    y = y.reshape(x.shape)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean.squeeze(-1), scale.squeeze(-1)


def _group_norm_backward(
    d_y: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    rows: Any,
    channels: int,
    each: int,
    groups: int,
    wanted: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    size = channels // groups * each
    grouped, mean, scale = x.reshape(x.shape[0], groups, size), mean.unsqueeze(-1), scale.unsqueeze(-1)
    d_x = d_weight = d_bias = None
    if wanted[0]:
        d_normal = d_y if weight is None else d_y * _along_channels(weight, x)
        d_normal = d_normal.reshape(grouped.shape)
        d_x, _, _ = _layer_norm_backward(d_normal, grouped, [size], mean, scale, None, None, (True, False, False))
        assert d_x is not None
        d_x = d_x.reshape(x.shape)
    others = [axis for axis in range(x.dim()) if axis != 1]
    if wanted[1]:
        d_weight = (d_y * ((grouped - mean) * scale).reshape(x.shape)).sum(others)
    if wanted[2]:
        d_bias = d_y.sum(others)
    return d_x, d_weight, d_bias


def _along_channels(part: Tensor, x: Tensor) -> Tensor:
    return part.reshape(-1, *[1] * (x.dim() - 2))


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def _softmax_backward(d_y: Tensor, y: Tensor, dim: int, dtype: Any) -> Tensor:
    weighted = d_y * y
    return weighted - y * weighted.sum(dim, keepdim=True)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - torch.exp(shifted).sum(dim, keepdim=True).log()


def _log_softmax_backward(d_y: Tensor, y: Tensor, dim: int, dtype: Any) -> Tensor:
    return d_y - torch.exp(y) * d_y.sum(dim, keepdim=True)


def _flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Any = None,
    scale: Any = None,
) -> tuple[Tensor, Tensor]:
    weights = _attention_weights(q, k, causal, attn_mask, scale)
    return weights @ v, weights.amax(-1)


def _flash_attention_backward(
    d_y: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    logsumexp: Tensor,
    dropout: float,
    causal: bool,
    *,
    attn_mask: Any = None,
    scale: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = _attention_weights(q, k, causal, attn_mask, scale)
    d_scores = _softmax_backward(d_y @ v.transpose(-1, -2), weights, -1, None) * _attention_scale(q, scale)
    return d_scores @ k, d_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ d_y


def _attention_weights(q: Tensor, k: Tensor, causal: bool, mask: Any, scale: Any) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * _attention_scale(q, scale)
    if causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        scores = torch.where(seen, scores, float("-inf"))
    return _softmax(scores if mask is None else scores + mask, -1, False)


def _attention_scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _shrink_backward(d_y: Tensor, x: Tensor, threshold: float) -> Tensor:
    return torch.where(x.abs() <= threshold, 0, d_y)


def _weight_norm_backward(d_w: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """w = g v / |v|"""
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    along = (d_w * v).sum(others, keepdim=True) / norms
    return (d_w - v * along / norms) * (g / norms), along


def _axes(x: Tensor, dim: Any) -> list[int]:
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    return [d % x.dim() for d in dims] if dims else list(range(x.dim()))


def _as_it_is(*_: Any, **__: Any) -> Any:
    """PyTorch would take it apart into less than there is a rule for."""
    return NotImplemented


FORMULAS: dict[Any, Callable[..., Any]] = {
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.addmv.default: _addmv,
    aten.tanh_backward.default: _tanh_backward,
    aten.sigmoid_backward.default: _sigmoid_backward,
    aten.threshold_backward.default: _threshold_backward,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.var_mean.correction: _var_mean,
    aten.std_mean.correction: _std_mean,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_attention_backward,
    aten.hardshrink_backward.default: _shrink_backward,
    aten.softshrink_backward.default: _shrink_backward,
    aten._weight_norm_interface_backward.default: _weight_norm_backward,
    **{getattr(aten, name).default: _as_it_is for name in NEAREST},
}

_PYTORCHS_OWN = """
    _fused_rms_norm _fused_rms_norm_backward _native_batch_norm_legit _native_batch_norm_legit_no_training
    _prelu_kernel _prelu_kernel_backward _safe_softmax _weight_norm_interface _weight_norm_interface_backward addcdiv
    addcmul addr aminmax binary_cross_entropy_with_logits celu count_nonzero diag_embed diagonal_backward dot elu
    elu_backward floor_divide frac gelu gelu_backward glu glu_backward hardshrink hardsigmoid hardsigmoid_backward
    hardswish hardswish_backward hardtanh hardtanh_backward heaviside huber_loss huber_loss_backward isfinite
    leaky_relu leaky_relu_backward lerp linalg_cross linalg_vector_norm log_sigmoid_backward log_sigmoid_forward
    logaddexp logaddexp2 logit logit_backward logsumexp mish mish_backward mse_loss mse_loss_backward nan_to_num
    nansum native_batch_norm native_batch_norm_backward nll_loss2d_backward
    nll_loss2d_forward nll_loss_backward nll_loss_forward norm
    pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d rot90 selu
    silu silu_backward sinc smooth_l1_loss smooth_l1_loss_backward softplus softplus_backward softshrink special_entr
    special_xlog1py threshold trace unfold_backward vdot xlogy
"""


def _bare(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Without what PyTorch wraps around it to mix dtypes, which imports PyTorch's whole compiler."""
    inner = inspect.unwrap(formula)

    def run(*args: Any, **kwargs: Any) -> Any:
        dtypes = {a.dtype for a in (*args, *kwargs.values()) if isinstance(a, Tensor)}
        alike = len(dtypes) == 1 and not dtypes.isdisjoint((torch.float32, torch.float64))
        return (inner if alike else formula)(*args, **kwargs)

    return run


def _add_pytorchs_own() -> None:
    for name in _PYTORCHS_OWN.split():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            operator = getattr(packet, overload)
            if operator in decomposition_table and not operator._schema.is_mutable:
                FORMULAS.setdefault(operator, _bare(decomposition_table[operator]))


_add_pytorchs_own()
