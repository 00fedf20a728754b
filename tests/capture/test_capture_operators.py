"""Each operator that a step may use: its rule and that of its gradient, compared with PyTorch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.agreement import assert_agrees, row

H = 7


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2] = 0
    y[:, 3:5] += 1
    y[:, ::3] *= 2
    y[y > 1] = 1.0
    return y


def _in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.add_(1).mul_(x)
    y.clamp_(max=2)
    y[:, :3].tanh_()
    return y


def _scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(1, x.argsort(1), x) + torch.zeros_like(x).scatter_add(1, x.argsort(1), x)


def _index_written(x: Tensor) -> Tensor:
    index = torch.tensor([0, 2, 4])
    return x.index_add(1, index, x[:, :3]).index_copy(1, index, x[:, 3:6]).index_fill(1, torch.tensor([1]), 0.5)


def _own_row(x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[0])
    y = x.clone()
    y[rows, x.argmin(1)] = 0.0
    return y + x[rows, x.argmax(1)][:, None]


def _turned(x: Tensor) -> Tensor:
    return x[:, :6].reshape(-1, 2, 3).transpose(1, 2)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{f.__name__: f for f in (F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh, F.hardsigmoid)},
    **{f.__name__: f for f in (F.hardswish, F.leaky_relu, F.relu6, F.celu, F.logsigmoid, F.softsign, F.tanhshrink)},
    **{f.__name__: f for f in (F.softshrink, F.hardshrink, torch.erf, torch.sin, torch.cos, torch.expm1, torch.frac)},
    **{f.__name__: f for f in (torch.relu, torch.exp, torch.atan, torch.sinh, torch.nan_to_num, torch.erfc)},
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "log": lambda x: torch.log(x.abs() + 1) + torch.log1p(x.abs()) + torch.log2(x * x + 1) + torch.xlogy(x, x * x + 1),
    "roots": lambda x: (
        (x * x + 1).sqrt() + torch.rsqrt(x * x + 1) + torch.reciprocal(x * x + 1) + torch.hypot(x, x + 1)
    ),
    "powers": lambda x: x**2 + x**3 + (x * x + 1) ** 0.5 + (x * x + 1) ** -1 + x.abs() ** 1.5 + 2**x + x**0,
    "atan2": lambda x: torch.atan2(x, x + 2),
    "sign": lambda x: torch.sign(x) * x.abs(),
    "rounding": lambda x: x * torch.round(x) + torch.floor(x) - torch.ceil(x) + torch.trunc(x),
    "remainder": lambda x: torch.remainder(x, 1.0) + torch.fmod(x, 0.7) + torch.div(x, 0.3, rounding_mode="floor"),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + x.clamp(max=torch.tensor(0.2)),
    "extremes": lambda x: torch.maximum(x, x * 2) + torch.minimum(x, torch.zeros_like(x)) + torch.fmax(x, x + 1),
    "where": lambda x: (
        torch.where(x > 0, x, torch.zeros_like(x)) + torch.where(x > 0, x, 0.1) + x.masked_fill(x > 1, 0.0)
    ),
    "logic": lambda x: x * ((x > 0) & (x < 1) | ~(x >= -1) ^ (x == 0)) + x * torch.logical_not(x),
    "lerp": lambda x: torch.lerp(x, x * 2, torch.sigmoid(x)) + torch.lerp(x, x * 2, 0.3),
    "lerp of turned": lambda x: (
        x + torch.lerp(_turned(x), _turned(2 * x), _turned(x).contiguous()).flatten(1).mean(1, True)
    ),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5) + torch.addcdiv(x, x, x * x + 1) + torch.sub(x, x, alpha=3),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2])) + F.threshold(x, 0.1, 0.2) + F.glu(torch.cat([x, x * 2], -1)),
    "dtypes": lambda x: (
        x.double().float() + x.half().float() + (x > 0).float() + x.int() + (x * torch.ones(H).double()).float()
    ),
    "numbers": lambda x: 1 - x + 2 / (x * x + 1) + x * True + torch.rsub(x, 1, alpha=2) + (-x) + x / 3,
}
AXES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, -1) + F.log_softmax(x, 1) + F.softmin(x, -1),
    "norms": lambda x: (
        F.normalize(x, dim=-1) + x / x.norm(1, dim=-1, keepdim=True) + x / x.norm(float("inf"), dim=-1, keepdim=True)
    ),
    "rms norm": lambda x: F.rms_norm(x, (H,), torch.ones(H) * 2),
    "group norm": lambda x: F.group_norm(torch.cat([x, x], 1), 2)[:, :H],
    "batch norm of fixed statistics": lambda x: F.batch_norm(x, torch.zeros(H) + 0.1, torch.ones(H) * 2),
    "variance": lambda x: x - x.var(-1, keepdim=True) + x / x.std(1, keepdim=True) + torch.var_mean(x, 1)[1][:, None],
    "log of sum": lambda x: x - x.logsumexp(-1, keepdim=True) + x.logcumsumexp(1),
    "largest": lambda x: x - x.max(-1, keepdim=True)[0] + x.amax(1, keepdim=True) - x.min(1)[0][:, None],
    "sums": lambda x: x - x.sum(1, True) + x.mean(1, True),
    "products": lambda x: x * x.prod(1, keepdim=True) + torch.cumprod(torch.sigmoid(x), 1) + x.cumsum(1),
    "order": lambda x: (
        x.sort(-1)[0] + x.topk(3, -1)[0].mean(-1, True) + x.median(1, True)[0] + x.kthvalue(2, 1, True)[0]
    ),
    "truth": lambda x: x * (x > 0).any(1, keepdim=True) + x * (x > 0).all(1, keepdim=True),
    "arg": lambda x: x * F.one_hot(x.argmax(-1), H) + x.argmin(1, keepdim=True),
    "distance": lambda x: x * F.cosine_similarity(x, x + 1, dim=1)[:, None] + F.mse_loss(x, x * 2, reduction="none"),
    "cross": lambda x: torch.cat([torch.linalg.cross(x[:, :3], x[:, 3:6]), x[:, :4]], 1),
    "losses": lambda x: (
        F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
        + F.smooth_l1_loss(x, x * 2, reduction="none")
    ),
    "pools": lambda x: F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0] + F.max_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "upsampled": lambda x: F.interpolate(x[:, None], scale_factor=2)[:, 0, :H],
}
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat and back": lambda x: torch.tanh(x.reshape(-1)).view(x.shape),
    "merged rows": lambda x: torch.sin(x[:, :, None].expand(-1, -1, 3).reshape(-1, 3)).view(x.shape[0], H, 3).sum(-1),
    "rows behind": lambda x: torch.sin(x.T[None] * torch.arange(H)[None, :, None]).squeeze(0).movedim(1, 0),
    "parts": lambda x: (
        torch.cat([c * i for i, c in enumerate(x.chunk(3, 1))], 1) + torch.cat(x.split([3, 4], 1)[::-1], 1)
    ),
    "unbound": lambda x: (
        torch.stack([a * i for i, a in enumerate(x.unbind(1))], 1) + torch.stack([x, x * 2], 1).mean(1)
    ),
    "steps": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1) + torch.cat([x[:, 2:], x[:, :2]], 1),
    "negative": lambda x: torch.cat([x[:, -3:], x[:, :-3]], -1) + x[:, -1:] + x[..., -2, None],
    "padded": lambda x: F.pad(x, (1, 0))[:, :-1] + F.pad(x, (0, 2), value=1.0)[:, 2:] + F.pad(x, (-1, 1)),
    "turned": lambda x: x.flip(1) + x.roll(2, 1) + x.roll(-1, -1),
    "repeated": lambda x: (
        x.repeat(1, 2)[:, :H] + x.repeat_interleave(2, 1)[:, :H] + torch.tile(x, (1, 2))[:, 2 : 2 + H]
    ),
    "windows": lambda x: x.unfold(1, 3, 2).sum(-1).repeat(1, 3)[:, :H] + x,
    "diagonals": lambda x: (
        torch.diag_embed(x).sum(1)
        + torch.diagonal(x[:, :, None] * x[:, None], 0, 1, 2)
        + torch.diagonal(x[:, :, None] * x[:, None, :4], -1, 1, 2).sum(1, True)
    ),
    "gathered": lambda x: (
        _of_parts(x) + x.gather(1, x.argsort(1)) + x[:, [2, 1, 0, 3, 4, 5, -1]] + x.index_select(1, torch.arange(H))
    ),
    "scattered": _scattered,
    "written by index": _index_written,
    "own entry of each row": _own_row,
    "assigned": _assigned,
    "in place": _in_place,
    "copied": lambda x: torch.empty_like(x).copy_(x) + x,
    "made inside": lambda x: (
        x + torch.eye(H)[2] + torch.linspace(0, 1, H) + torch.tensor([1.0] * H) + x.new_full((H,), 2)
    ),
    "made for rows": lambda x: (
        x + torch.zeros(x.shape[0], H) + x.new_ones(x.size(0) * 2, H).view(x.shape[0], -1)[:, :H]
    ),
    "from a list": lambda x: x * torch.tensor([0.5, 1.0, 2.0, 0.1, 0.2, 0.3, 0.4]),
}


def _of_parts(x: Tensor) -> Tensor:
    """Several lines of each row, one below the other."""
    lines = x[:, :6].reshape(-1, 3)
    best = lines.topk(2, 1)[0] + lines.gather(1, lines.argsort(1)[:, 1:])
    return x + best.reshape(len(x), 4).mean(1, True)


PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "outer": lambda x: (x[:, :, None] * x[:, None, :]).sum(2) + torch.bmm(x[:, :, None], x[:, None, :])[:, 0],
    "per row": lambda x: torch.bmm(x[:, :, None] * x[:, None, :], x[:, :, None])[:, :, 0],
    "vector": lambda x: (
        (x @ torch.arange(H).float())[:, None] * x + torch.addmv(x[:, 0], x, torch.ones(H), beta=2)[:, None]
    ),
    "matrix first": lambda x: (torch.eye(H).mul(2) @ x.T).T + (torch.tril(torch.ones(H, H)) @ x[:, :, None])[:, :, 0],
    "baddbmm": lambda x: torch.baddbmm(x[:, :, None], x[:, :, None] * x[:, None], x[:, :, None], beta=0.5, alpha=2)[
        :, :, 0
    ],
    "addmm": lambda x: torch.addmm(x, x, torch.ones(H, H), beta=0.5, alpha=0.1),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, :, None], x[:, :, None], x[:, :, None])[:, :, 0],
    "bilinear": lambda x: F.bilinear(x, x[:, :3], torch.ones(H, H, 3) * 0.1, torch.ones(H)),
}


class Around(nn.Module):
    """Between a map, so that rows differ and gradients flow, and the state."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.map, self.function = nn.Linear(5 + H, H), function

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.function(self.map(torch.cat([x, h], 1)))
        return h, h


@pytest.mark.parametrize("name", UNARY)
def test_elementwise(name: str) -> None:
    assert_agrees(Around(UNARY[name]), row(5), row(H), rows=(1, 7), scale=5)


@pytest.mark.parametrize("name", AXES)
def test_along_feature_axes(name: str) -> None:
    assert_agrees(Around(AXES[name]), row(5), row(H), rows=(1, 7), scale=5)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_indices(name: str) -> None:
    assert_agrees(Around(SHAPES[name]), row(5), row(H), rows=(1, 7), scale=5)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    assert_agrees(Around(PRODUCTS[name]), row(5), row(H), rows=(1, 7), scale=5)


def test_no_work_is_left_that_does_nothing() -> None:
    def idle(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y = (x.clone().contiguous().detach() + 0) * 1 / 1 - 0
        y = y.view(-1, H).unsqueeze(1).squeeze(1).T.T.expand(x.shape[0], H).to(torch.float32)
        torch.exp(y) @ torch.randn(H, H)
        return y.reshape(x.shape), h

    assert assert_agrees(idle, row(H), row(H)).pair.forward.nodes == ()


def test_what_is_computed_twice_is_there_once() -> None:
    w = torch.randn(H, H)
    trace = assert_agrees(lambda x, h: (torch.tanh(x @ w) + torch.tanh(x @ w), h), row(H), row(H))
    assert [n.op for n in trace.pair.forward.nodes] == ["mm", "tanh", "add"]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2, 3, 2), (12,)])
def test_group_norm_over_axes_with_weights(shape: tuple[int, ...], affine: bool) -> None:
    norm = nn.GroupNorm(2, shape[0], affine=affine)
    if affine:
        nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    size = torch.Size(shape).numel()
    function = nn.Sequential(nn.Linear(H, size), nn.Unflatten(1, shape), norm, nn.Flatten(), nn.Linear(size, H))
    assert_agrees(Around(function), row(5), row(H), rows=(1, 7))
