"""Steps on images: the native backend gives what the plain loop gives, outputs and all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loop.native.test_native_operators import LENGTHS, ROWS, STEPS, UNITS, Step, check, numbers
from throughtime import BackendError, dynamic_rnn
from throughtime._nested import Nested
from throughtime.cells.contrib import ConvLSTMCell


def convolved(x: Any, h: Tensor, padded: Tensor, apart: Tensor, square: Tensor, turned: Tensor) -> Any:
    """Steps, paddings, gaps, groups and a transposed form, over one axis and two."""
    line, image = x
    both = torch.cat([line, h.unsqueeze(1)], 1)
    found = {
        "padded": F.conv1d(both, padded, padded[:, 0, 0], padding=2),
        "with gaps": F.conv1d(both, apart, padding=3, dilation=2, stride=2),
        "over two axes": F.conv2d(image + h[:, :1, None, None], square, stride=(2, 1), padding=(1, 2)),
        "transposed": F.conv_transpose1d(both.repeat(1, 2, 1)[:, 2:], turned, stride=2, padding=1, groups=2),
    }
    return found, torch.tanh(h + found["padded"][:, 0, 1:-1])


def test_convolutions() -> None:
    kernels = [numbers(*shape) / 2 for shape in [(2, 3, 3), (2, 3, 4), (3, 2, 3, 2), (4, 3, 2)]]
    inputs = (numbers(ROWS, STEPS, 2, UNITS), numbers(ROWS, STEPS, 2, 5, 4))
    check(convolved, kernels, inputs, torch.float64)


@pytest.mark.parametrize("sizes", [(9, 2), (8, 6, 2)], ids=["1-D", "2-D"])
def test_a_convolutional_lstm(sizes: tuple[int, ...]) -> None:
    dims = len(sizes) - 1
    cell = ConvLSTMCell(dims, sizes, 3, (3, 2)[:dims], skip_connection=True)
    x = numbers(ROWS, STEPS, *sizes).float().requires_grad_()
    found = {}
    for backend in ("portable", "native"):
        outputs, state = dynamic_rnn(cell, x, LENGTHS, backend=backend)
        total = outputs.square().sum() + state.c.sum()
        found[backend] = [outputs, state.c, *torch.autograd.grad(total, [x, *cell.parameters()])]
    for got, want in zip(found["native"], found["portable"], strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4)


def test_a_convolution_of_what_is_the_same_at_all_steps() -> None:
    """Its kernel's gradient is cut: it reads the memory's windows at each step, though nothing comes to it."""

    def step(x: Tensor, h: Tensor, memory: Tensor, kernel: Tensor) -> tuple[Nested, Tensor]:
        seen = F.conv1d(memory.clamp(min=-0.2), kernel, padding=1)
        return torch.where(memory < 0.1, seen, memory).ceil(), torch.tanh(h + x)

    check(step, [numbers(2, 2, 3)], numbers(ROWS, STEPS, UNITS), torch.float64, [numbers(ROWS, 2, 5)])


def by_channel(x: Any, h: Tensor, square: Tensor, many: Tensor, few: Tensor, turned: Tensor) -> Any:
    """A kernel for each channel, or several; few channels and more than 16; over one axis and two, and transposed."""
    line, image = x
    line, image = torch.tanh(line + h[:, :1, None]), torch.tanh(image * h[:, :1, None, None])
    found = {
        "over two axes": F.conv2d(image, square, square[:, 0, 0, 0], stride=(2, 1), padding=1, groups=3),
        "of many channels": F.conv1d(line, many, padding=2, dilation=2, groups=20),
        "several of each": F.conv1d(line[:, :4], few, few[:, 0, 0], groups=4),
        "transposed": F.conv_transpose1d(line, turned, turned[:, 0, 0], stride=2, padding=1, groups=20),
    }
    return found, torch.tanh(h + found["of many channels"].mean(1))


def test_convolutions_with_a_kernel_for_each_channel() -> None:
    kernels = [numbers(*shape) / 2 for shape in [(3, 1, 3, 2), (20, 1, 3), (8, 1, 3), (20, 1, 2)]]
    inputs = (numbers(ROWS, STEPS, 20, UNITS), numbers(ROWS, STEPS, 3, 5, 4))
    check(by_channel, kernels, inputs, torch.float64)


def test_a_convolution_of_many_groups_is_refused() -> None:
    def step(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(F.conv1d(h, kernel, padding=1, groups=20) + x)
        return h, h

    kernel = numbers(40, 2, 3)
    with pytest.raises(BackendError, match=r"operator 'convolution' .* is not in the native backend's table"):
        dynamic_rnn(step, numbers(ROWS, STEPS, 40, UNITS), None, numbers(ROWS, 40, UNITS), backend="native")


def resized(x: Tensor, h: Tensor) -> tuple[Nested, Tensor]:
    """Twice as large, of a given size, smaller, by a factor that is no whole number."""
    h = torch.tanh(h + x[:, 0, 0])
    image = torch.tanh(x) * h[:, :1, None, None]
    found = {
        "twice": F.interpolate(image, scale_factor=2),
        "line": F.interpolate(image.flatten(1, 2), scale_factor=3),
        "of a size": F.interpolate(image, (7, 4)),
        "by a factor": F.interpolate(image, scale_factor=(1.7, 0.5), recompute_scale_factor=False),
        "exact": F.interpolate(image, (5, 9), mode="nearest-exact"),
        "of a room": F.interpolate(image[:, :, :2].unsqueeze(1), (3, 2, 6)),
        "between": F.interpolate(image, (7, 9), mode="bilinear"),
        "between corners": F.interpolate(image.flatten(1, 2), 4, mode="linear", align_corners=True),
        "means": F.adaptive_avg_pool2d(image, (3, 4)),
        "apart": F.interpolate(image.flatten(0, 1).unsqueeze(1), scale_factor=2).sum((1, 2)).view(len(x), -1),
    }
    return found, h


def test_images_of_another_size() -> None:
    check(resized, [], numbers(ROWS, STEPS, 2, 4, UNITS), torch.float64)


def pooled(x: Tensor, h: Tensor) -> tuple[Nested, Tensor]:
    """Equal elements, windows that reach over the edge, that overlap, that have gaps; over one axis to three."""
    image = torch.tanh(x + h[:, :1, None, None])
    some = torch.relu(image)
    found = {
        "largest": F.max_pool2d(some, 3, 2, 1),
        "over the edge": F.max_pool2d(some, (2, 3), dilation=(2, 1), ceil_mode=True),
        "of a line": F.max_pool1d(some.flatten(1, 2), 3, 1),
        "of a room": F.max_pool3d(some.unsqueeze(1), 2),
        "mean": F.avg_pool2d(image, 3, 2, 1),
        "mean of a line": F.avg_pool1d(image.flatten(1, 2), 2),
        "mean of a room": F.avg_pool3d(image.unsqueeze(1), (1, 2, 2), divisor_override=3),
    }
    return found, torch.tanh(h + found["mean"].flatten(1)[:, :UNITS])


def test_pools() -> None:
    check(pooled, [], numbers(ROWS, STEPS, 2, 7, 5), torch.float64)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (lambda x, h: (F.max_pool1d(x, 2, return_indices=True)[1], h), "max_pool2d_with_indices"),
        (lambda x, h: (F.avg_pool1d(x, 3, 2, 1, count_include_pad=False), h), "avg_pool2d"),
    ],
    ids=["indices", "uneven means"],
)
def test_pools_that_are_refused(step: Step, name: str) -> None:
    with pytest.raises(BackendError, match=f"operator '{name}' .* is not in the native backend's table"):
        dynamic_rnn(step, numbers(ROWS, STEPS, 2, UNITS), None, numbers(ROWS, UNITS), backend="native")
