"""Ways round operations of PyTorch that are slow in bf16 training on CPUs; what is computed stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rcg.core.attention import quick_attention

SMALL_MAP = 16
"""Positions of a feature map up to which the gradient of a convolution's weights is faster as one matrix product. (A core of an
Intel Xeon with AMX, 256 images, ms as a convolution → as a product: 128 channels at 4×4 7.3 → 3.1, dilated 17.9 → 3.4; 256
channels at 2×2 25 → 2.3, at 4×4 33 → 10; but 64 channels at 8×8 3.2 → 4.6.)"""


@contextmanager
def quick_backbone(x: Tensor) -> Iterator[None]:
    """Within it, a backbone that trains in bf16 on a CPU has `quick_attention`, and `SmallMaps` for its convolutions; any
    other pass is left alone.

    Args:
        x: the backbone's input.
    """
    training = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
    if not training or torch.compiler.is_compiling():
        yield
        return
    with quick_attention(x), SmallMaps():
        yield


class SmallMaps(TorchFunctionMode):
    """Convolutions over maps of at most `SMALL_MAP` positions leave out the taps that see nothing but padding (a dilated kernel has
    them: on 4×4 positions, dilation 4 leaves the middle one alone), and the gradient of their weights is a matrix product."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in the place of every function of torch."""
        kwargs = kwargs or {}
        if func is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if (reach := _reach(x, weight, stride, padding, dilation, groups)) is not None:
                return _conv2d(x, weight, bias, reach, tuple(dilation))
        return func(*args, **kwargs)


def _reach(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> tuple[int, int] | None:
    """How many taps on each side of the middle one can see the map, by axis; None: not a convolution of this kind."""
    sides = tuple(x.shape[2:])
    kernel = tuple(weight.shape[2:])
    same = x.ndim == 4 and groups == 1 and tuple(stride) == (1, 1) and not isinstance(padding, str)
    if not same or not weight.requires_grad or sides[0] * sides[1] > SMALL_MAP or any(k % 2 == 0 for k in kernel):
        return None
    if any(p != d * (k // 2) for p, d, k in zip(padding, dilation, kernel, strict=True)):
        return None
    rows, columns = (min(k // 2, (side - 1) // d) for k, side, d in zip(kernel, sides, dilation, strict=True))
    return rows, columns


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, reach: tuple[int, int], dilation: tuple[int, ...]
) -> Tensor:
    rows, columns = (weight.shape[axis] // 2 - reach[axis - 2] for axis in (2, 3))
    weight = weight[:, :, rows : weight.shape[2] - rows, columns : weight.shape[3] - columns]
    dtype = torch.get_autocast_dtype("cpu")
    y: Tensor = _SmallMapConvolution.apply(x.to(dtype), weight.to(dtype), reach, dilation)
    return y if bias is None else y + bias.to(dtype)[:, None, None]


class _SmallMapConvolution(torch.autograd.Function):
    """A convolution, stride 1, that keeps the size of a map [B, C, H, W]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, reach: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        padding = (reach[0] * dilation[0], reach[1] * dilation[1])
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.padding = dilation, padding
        return F.conv2d(x, weight, None, 1, padding, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            geometry = ((1, 1), ctx.padding, ctx.dilation, False, (0, 0), 1)
            to_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            outputs, inputs, rows, columns = weight.shape
            product = _rows(gradient).t() @ _patches(x, (rows, columns), ctx.padding, ctx.dilation)
            to_weight = product.view(outputs, rows, columns, inputs).permute(0, 3, 1, 2)
        return to_x, to_weight, None, None


def _rows(x: Tensor) -> Tensor:
    """[B, C, H, W] as [B·H·W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _patches(x: Tensor, kernel: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """What a kernel sees at each position of [B, C, H, W], as [B·H·W, rows·columns·C]."""
    if kernel == (1, 1):
        return _rows(x)
    batch, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    image, row, column, channel = padded.stride()
    size = (batch, height, width, *kernel, channels)
    strides = (image, row, column, row * dilation[0], column * dilation[1], channel)
    return padded.as_strided(size, strides).reshape(batch * height * width, -1)
