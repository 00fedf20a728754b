"""A source of random choices -> the instructions of a step, from every operator that the native backend has.

The step is run on a few rows while it is written, so every choice sees the shapes there are. Values are kept small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MOST_NUMBERS", "Instruction", "StepWriter"]

LARGEST = 3.0
MOST_FEATURES = 48
MOST_NUMBERS = 5
"""Whole numbers are less than this."""

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": lambda x: torch.acos(0.9 * torch.tanh(x)),
    "asin": lambda x: torch.asin(0.9 * torch.tanh(x)),
    "atan": torch.atan,
    "ceil": torch.ceil,
    "celu": lambda x: F.celu(x, 0.7),
    "clamp": lambda x: x.clamp(-0.4, 0.6),
    "clamp_max": lambda x: x.clamp(max=0.3),
    "clamp_min": lambda x: x.clamp(min=-0.2),
    "cos": torch.cos,
    "cube": lambda x: x**3,
    "detach": torch.detach,
    "elu": F.elu,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "exp": lambda x: torch.exp(x.clamp(-3, 1)),
    "expm1": lambda x: torch.expm1(x.clamp(-3, 1)),
    "floor": torch.floor,
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "log": lambda x: torch.log(x.abs() + 0.5),
    "log1p": lambda x: torch.log1p(x * x),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "neg": torch.neg,
    "pow": lambda x: (x.abs() + 0.1) ** 1.7,
    "reciprocal": lambda x: 1 / (1 + x * x),
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "rsqrt": lambda x: torch.rsqrt(x * x + 0.5),
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "square": torch.square,
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -0.3),
    "times": lambda x: -1.5 * x,
    "to its power": lambda x: 0.7**x,
    "plus": lambda x: x + 0.25,
    "from": lambda x: 1 - x,
    "over": lambda x: x / 1.7,
    "trunc": torch.trunc,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "add scaled": lambda a, b: torch.add(a, b, alpha=0.3),
    "and": lambda a, b: ((a > 0) & (b < 0.5)).to(a.dtype),
    "atan2": lambda a, b: torch.atan2(a, b.abs() + 0.5),
    "div": lambda a, b: a / (1 + b.abs()),
    "equal signs": lambda a, b: (a.sign() == b.sign()).to(a.dtype) * b,
    "greater": lambda a, b: torch.where(a > b, a, 0.5 * b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "less or": lambda a, b: torch.where((a <= 0) | ~(b >= 0), b, a),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "masked": lambda a, b: a.masked_fill(b > 0, -0.5),
    "mul": torch.mul,
    "pow": lambda a, b: (a.abs() + 0.2) ** b.clamp(-1, 1.5),
    "sub": torch.sub,
}
REDUCE: dict[str, Callable[..., Tensor]] = {
    "amax": torch.amax,
    "amin": torch.amin,
    "logsumexp": torch.logsumexp,
    "mean": torch.mean,
    "norm": lambda x, dim, keepdim: torch.linalg.vector_norm(x + 0.1, dim=dim, keepdim=keepdim),
    "sum": torch.sum,
    "var": lambda x, dim, keepdim: torch.var(x, dim, correction=0, keepdim=keepdim),
}
RUNNING: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cummax": lambda x, dim: _apart(x, dim).cummax(dim)[0],
    "cummin": lambda x, dim: _apart(x, dim).cummin(dim)[0],
    "cumprod": lambda x, dim: (0.5 + torch.sigmoid(x)).cumprod(dim),
    "cumsum": torch.cumsum,
    "logcumsumexp": torch.logcumsumexp,
}
ORDER: dict[str, Callable[[Tensor, int], Tensor]] = {
    "largest": lambda x, dim: x.topk(min(2, x.shape[dim]), dim)[0],
    "median": lambda x, dim: x.median(dim, keepdim=True)[0],
    "smallest": lambda x, dim: x.topk(1, dim, largest=False)[0],
    "sort": lambda x, dim: x.sort(dim)[0],
    "sort back": lambda x, dim: x.sort(dim, descending=True)[0],
}


def _apart(x: Tensor, dim: int) -> Tensor:
    """Of equal entries nobody says which one has the gradient."""
    steps = 0.37 * torch.arange(x.shape[dim], dtype=x.dtype)
    return x + steps.reshape(-1, *[1] * (x.dim() - dim - 1))


@dataclass(frozen=True)
class Instruction:
    """The step's next value is `function(tensors, *(values[i] for i in operands))`."""

    text: str
    function: Callable[..., Tensor]
    operands: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.text}({', '.join(map(str, self.operands))})"


class StepWriter:
    """values: of a few rows, in the order of their making. tensors: what the step closes over, and of what kind."""

    def __init__(self, random: Random, inputs: Sequence[Tensor]) -> None:
        self.random = random
        self.generator = torch.Generator().manual_seed(0)
        self.values = list(inputs)
        self.instructions: list[Instruction] = []
        self.tensors: list[Tensor] = []
        self.kinds: list[str] = []

    def grow(self, count: int) -> None:
        kinds = [
            *(self._unary, self._unary, self._unary, self._binary, self._binary, self._binary, self._linear),
            *(self._linear, self._linear, self._cat, self._slice, self._reduce, self._softmax, self._layer_norm),
            *(self._with_tensor, self._reshape, self._permute, self._products, self._stack, self._expand, self._three),
            *(self._group_norm, self._flip, self._pad, self._running, self._look_up, self._order, self._matrix),
            *(self._resize, self._convolve),
        ]
        for _ in range(count):
            self.random.choice(kinds)()

    def add(self, text: str, function: Callable[..., Tensor], *operands: int) -> int:
        """Large values are made small, so that rounding stays small over the steps."""
        value = function(self.tensors, *(self.values[i] for i in operands))
        assert value.isfinite().all(), text
        self.values.append(value)
        self.instructions.append(Instruction(text, function, operands))
        if float(value.abs().max()) > LARGEST:
            return self.add("small", lambda _, x: x / (1 + x.abs()), len(self.values) - 1)
        return len(self.values) - 1

    def remember(self, *shape: int) -> None:
        """A tensor with an entry for each row."""
        self.tensors.append(torch.randn(shape, generator=self.generator, dtype=torch.float64))
        self.kinds.append("memory")

    def embed(self, i: int, entries: int) -> None:
        """What the whole numbers `i` name in a table."""
        w = self.tensor(entries, self.random.choice([1, 3, 4]))
        self.add(f"embedding {w}", lambda t, x: F.embedding(x, t[w]), i)

    def mix(self, i: int) -> int:
        """A value shaped like `i`, made of `i` and any other."""
        shape, source = self.values[i].shape[1:], self.pick()
        assert source is not None
        k, n = self.values[source][0].numel(), shape.numel()
        w = self.tensor(n, k, scale=k**-0.5)

        def mixed(tensors: list[Tensor], old: Tensor, x: Tensor) -> Tensor:
            new = F.linear(x.reshape(len(x), k), tensors[w]).reshape(len(x), *shape)
            return 0.5 * old + torch.tanh(new)

        return self.add(f"mix {w}", mixed, i, source)

    def tensor(self, *shape: int, scale: float = 1.0) -> int:
        """Its number. Now and then it is one that is there already: shared weights."""
        same = [i for i, t in enumerate(self.tensors) if t.shape == shape and self.kinds[i] != "memory"]
        if same and self.random.random() < 0.3:
            return self.random.choice(same)
        self.tensors.append(torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale)
        self.kinds.append(self.random.choice(["parameter", "parameter", "parameter", "enclosed", "buffer", "frozen"]))
        return len(self.tensors) - 1

    def pick(self, accept: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> int | None:
        """A value of features [...] that fit: more often than not one of the last."""
        fitting = [i for i, v in enumerate(self.values) if v.is_floating_point() and accept(tuple(v.shape[1:]))]
        if not fitting:
            return None
        return self.random.choice(fitting[-5:] if self.random.random() < 0.6 else fitting)

    def shape(self, i: int) -> tuple[int, ...]:
        return tuple(self.values[i].shape[1:])

    def _axis(self, i: int) -> int:
        return self.random.randrange(1, self.values[i].dim())

    # --- one value

    def _unary(self) -> None:
        name = self.random.choice(sorted(UNARY))
        if (i := self.pick()) is not None:
            self.add(name, lambda _, x, f=UNARY[name]: f(x), i)

    def _softmax(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0)) is None:
            return
        dim = self._axis(i)
        function = self.random.choice([torch.softmax, torch.log_softmax])
        self.add(function.__name__, lambda _, x: function(x, dim), i)

    def _reduce(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0)) is None:
            return
        name, keep = self.random.choice(sorted(REDUCE)), self.random.random() < 0.5
        axes = list(range(1, self.values[i].dim()))
        dims = self.random.choice([tuple(axes), (self.random.choice(axes),), (axes[-1],)])
        self.add(f"{name} {dims}", lambda _, x: REDUCE[name](x, dim=dims, keepdim=keep), i)

    def _running(self) -> None:
        self._along_axis(RUNNING)

    def _order(self) -> None:
        self._along_axis({name: lambda x, dim, f=f: f(_apart(x, dim), dim) for name, f in ORDER.items()})

    def _along_axis(self, functions: dict[str, Callable[[Tensor, int], Tensor]]) -> None:
        name = self.random.choice(sorted(functions))
        if (i := self.pick(lambda s: len(s) > 0)) is not None:
            dim, function = self._axis(i), functions[name]
            self.add(f"{name} {dim}", lambda _, x: function(x, dim), i)

    def _matrix(self) -> None:
        if (i := self.pick(lambda s: len(s) > 1)) is None:
            return
        form, offset = self.random.choice(["diagonal", "tril", "triu"]), self.random.choice([0, 0, -1, 1])
        axes = self.random.sample(range(1, self.values[i].dim()), 2)
        if form != "diagonal":
            function = torch.tril if form == "tril" else torch.triu
            self.add(f"{form} {offset}", lambda _, x: function(x, offset), i)
        elif self.values[i].diagonal(offset, *axes).shape[-1]:
            self.add(f"diagonal {offset} {axes}", lambda _, x: x.diagonal(offset, *axes), i)

    def _resize(self) -> None:
        """Channels, and the axes behind them."""
        if (i := self.pick(lambda s: len(s) in (2, 3))) is None:
            return
        sizes = [self.random.choice([n, 2 * n, n + 1, max(n - 1, 1)]) for n in self.shape(i)[1:]]
        if self.shape(i)[0] * prod(sizes) <= MOST_FEATURES:
            self.add(f"interpolate {sizes}", lambda _, x: F.interpolate(x, sizes), i)

    def _convolve(self) -> None:
        """Over one axis behind the channels: all of them together, or each with kernels of its own."""
        if (i := self.pick(lambda s: len(s) == 2)) is None:
            return
        (channels, size), each = self.shape(i), self.random.choice([1, 2])
        groups, k, stride = self.random.choice([1, channels]), self.random.choice([1, 2, 3]), self.random.choice([1, 2])
        outputs = each * groups
        w, b = self.tensor(outputs, channels // groups, k, scale=0.5), self.tensor(outputs)
        if outputs * (size + 3) <= MOST_FEATURES:
            text = f"convolution {w} {b} of {groups} groups, stride {stride}"
            self.add(text, lambda t, x: F.conv1d(x, t[w], t[b], stride, padding=1, groups=groups), i)

    def _look_up(self) -> None:
        """Entries of each row by the whole numbers that it has."""
        numbers = [i for i, v in enumerate(self.values) if v.dtype == torch.int64]
        if not numbers or (i := self.pick(lambda s: len(s) == 1 and s[0] >= MOST_NUMBERS)) is None:
            return
        form = self.random.choice(["gather", "scatter_add", "nll_loss"])
        chosen = self.random.choice(numbers)

        def look_up(_: Any, x: Tensor, number: Tensor) -> Tensor:
            index = number.reshape(len(x), -1)
            if form == "gather":
                return x.gather(1, index)
            if form == "scatter_add":
                return x.scatter_add(1, index, x[:, : index.shape[1]])
            return F.cross_entropy(x, index[:, 0], reduction="none")

        self.add(form, look_up, i, chosen)

    def _layer_norm(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0 and s[-1] > 2)) is None:
            return
        shape = self.shape(i)[-self.random.randint(1, len(self.shape(i))) :]
        w, b = (self.tensor(*shape), self.tensor(*shape)) if self.random.random() < 0.7 else (None, None)

        def norm(tensors: list[Tensor], x: Tensor) -> Tensor:
            scale, shift = (None if k is None else tensors[k] for k in (w, b))
            return F.layer_norm(x, shape, scale, shift, eps=0.1)

        self.add("layer_norm", norm, i)

    def _group_norm(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0 and s[0] % 2 == 0 and prod(s) > 2)) is None:
            return
        w, b = self.tensor(self.shape(i)[0]), self.tensor(self.shape(i)[0])
        self.add("group_norm", lambda t, x: F.group_norm(x, 2, t[w], t[b], eps=0.1), i)

    # --- shapes

    def _slice(self) -> None:
        if (i := self.pick(lambda s: any(n > 1 for n in s))) is None:
            return
        dim = self._axis(i)
        size = self.values[i].shape[dim]
        start = self.random.randrange(size)
        end, step = self.random.randint(start + 1, size), self.random.choice([1, 1, 1, 2])
        piece = (slice(None),) * dim + (slice(start, end, step),)
        form = self.random.choice(["slice", "select", "chunk"])
        if form == "slice":
            self.add(f"slice {dim} {start}:{end}:{step}", lambda _, x: x[piece], i)
        elif form == "select":
            self.add(f"select {dim} {start}", lambda _, x: x.select(dim, start), i)
        else:
            self.add(f"chunk {dim}", lambda _, x: x.chunk(2, dim)[-1], i)

    def _reshape(self) -> None:
        if (i := self.pick()) is None:
            return
        count = self.values[i][0].numel()
        ways = [(count,), (1, count), (count, 1), (1,) if count == 1 else (count,)]
        ways += [(a, count // a) for a in (2, 3, 4) if count % a == 0]
        ways += [(2, count // 4, 2)] if count % 4 == 0 else []
        shape = self.random.choice(ways)
        self.add(f"reshape {shape}", lambda _, x: x.reshape(len(x), *shape), i)

    def _permute(self) -> None:
        if (i := self.pick(lambda s: len(s) > 1)) is None:
            return
        axes = list(range(1, self.values[i].dim()))
        self.random.shuffle(axes)
        self.add(f"permute {axes}", lambda _, x: x.permute(0, *axes), i)

    def _flip(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0)) is None:
            return
        dim = self._axis(i)
        self.add(f"flip {dim}", lambda _, x: x.flip(dim), i)

    def _expand(self) -> None:
        if (i := self.pick(lambda s: len(s) < 3)) is None or self.values[i][0].numel() > MOST_FEATURES // 3:
            return
        dim, n = self.random.randint(1, self.values[i].dim()), self.random.choice([2, 3])

        def expand(_: Any, x: Tensor) -> Tensor:
            return x.unsqueeze(dim).expand(*x.shape[:dim], n, *x.shape[dim:])

        self.add(f"expand {dim} {n}", expand, i)

    def _pad(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0)) is None or self.values[i][0].numel() > MOST_FEATURES // 2:
            return
        left, right = self.random.choice([(1, 0), (0, 2), (1, 1)])
        self.add(f"pad {left} {right}", lambda _, x: F.pad(x, (left, right), value=0.0), i)

    def _cat(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0)) is None:
            return
        dim = self._axis(i)

        def joins(shape: tuple[int, ...]) -> bool:
            own = self.shape(i)
            return len(shape) == len(own) and all(a == b for k, (a, b) in enumerate(zip(shape, own)) if k != dim - 1)

        parts = [i, *(j for _ in range(self.random.randint(1, 2)) if (j := self.pick(joins)) is not None)]
        self.random.shuffle(parts)
        if sum(self.values[j][0].numel() for j in parts) <= MOST_FEATURES:
            self.add(f"cat {dim}", lambda _, *xs: torch.cat(xs, dim), *parts)

    def _stack(self) -> None:
        if (i := self.pick(lambda s: len(s) < 3)) is None or self.values[i][0].numel() > MOST_FEATURES // 2:
            return
        other = self.pick(lambda s: s == self.shape(i))
        dim = self.random.randint(1, self.values[i].dim())
        self.add(f"stack {dim}", lambda _, *xs: torch.stack(xs, dim), i, i if other is None else other)

    # --- several values

    def _other(self, i: int) -> int | None:
        """A value that broadcasts against i."""

        def fits(shape: tuple[int, ...]) -> bool:
            own = self.shape(i)
            return len(shape) == len(own) and all(a in (b, 1) or b == 1 for a, b in zip(shape, own))

        j = self.pick(fits)
        if j is None or torch.broadcast_shapes(self.shape(i), self.shape(j)).numel() > MOST_FEATURES:
            return None
        return j

    def _binary(self) -> None:
        name, i = self.random.choice(sorted(BINARY)), self.pick()
        if i is not None and (j := self._other(i)) is not None:
            self.add(name, lambda _, a, b: BINARY[name](a, b), i, j)

    def _three(self) -> None:
        if (i := self.pick()) is None or (j := self._other(i)) is None or (k := self._other(i)) is None:
            return
        form = self.random.choice(["addcmul", "where", "lerp"])
        sizes = [set(sizes) - {1} for sizes in zip(*(self.shape(v) for v in (i, j, k)))]
        if any(len(s) > 1 for s in sizes) or prod(max(s, default=1) for s in sizes) > MOST_FEATURES:
            return
        if form == "addcmul":
            self.add(form, lambda _, a, b, c: torch.addcmul(a, b, c, value=0.5), i, j, k)
        elif form == "where":
            self.add(form, lambda _, a, b, c: torch.where(a < 0.1, b, c), i, j, k)
        else:
            self.add(form, lambda _, a, b, c: torch.lerp(a, b, torch.sigmoid(c)), i, j, k)

    def _with_tensor(self) -> None:
        if (i := self.pick()) is None:
            return
        own = self.shape(i)
        shape = self.random.choice([own, own[-1:], (), tuple(1 if k else n for k, n in enumerate(own))])
        w, name = self.tensor(*shape), self.random.choice(sorted(BINARY))
        turned = self.random.random() < 0.3
        self.add(f"{name} with {w}", lambda t, x: BINARY[name](*((t[w], x) if turned else (x, t[w]))), i)

    def _linear(self) -> None:
        if (i := self.pick(lambda s: len(s) > 0)) is None:
            return
        k, n = self.shape(i)[-1], self.random.choice([1, 2, 3, 4, 8, 9])
        if self.values[i][0].numel() // k * n > MOST_FEATURES:
            return
        form = self.random.choice(["linear", "linear with bias", "matmul", "matmul + bias"])
        b = self.tensor(n) if "bias" in form else None
        w = self.tensor(*((n, k) if form.startswith("linear") else (k, n)), scale=k**-0.5)
        if form.startswith("linear"):
            self.add(f"{form} {w}", lambda t, x: F.linear(x, t[w], None if b is None else t[b]), i)
        else:
            self.add(f"{form} {w}", lambda t, x: x @ t[w] if b is None else t[b] + x @ t[w], i)

    def _products(self) -> None:
        """Products of a row's own values: matrices, outer and inner products, attention."""
        form = self.random.choice(["bmm", "outer", "inner", "attend"])
        if form in ("outer", "inner"):
            self._vector_product(form)
            return
        if (i := self.pick(lambda s: len(s) == 2)) is None:
            return
        m, k = self.shape(i)
        if form == "attend" and (j := self.pick(lambda s: s == (k,))) is not None:
            self.add("attend", _attend, i, j)
        j = self.pick(lambda s: len(s) == 2 and s[0] == k) if form == "bmm" else None
        if j is not None and m * self.shape(j)[1] <= MOST_FEATURES:
            self.add("bmm", lambda _, a, b: a @ b / k, i, j)

    def _vector_product(self, form: str) -> None:
        if (i := self.pick(lambda s: len(s) == 1)) is None:
            return
        (n,) = self.shape(i)
        j = self.pick(lambda s: len(s) == 1 and (s[0] == n or (form == "outer" and s[0] * n <= MOST_FEATURES)))
        if j is None:
            return
        if form == "inner":
            self.add("inner", lambda _, a, b: torch.einsum("bi,bi->b", a, b) / n, i, j)
        elif n * self.shape(j)[0] <= MOST_FEATURES:
            self.add("outer", lambda _, a, b: torch.einsum("bi,bj->bij", a, b), i, j)


def _attend(_: Any, memory: Tensor, query: Tensor) -> Tensor:
    weights = F.softmax(torch.einsum("rmh,rh->rm", memory, query), -1)
    return torch.einsum("rm,rmh->rh", weights, memory)
