"""Attention whose backward pass is quick on CPUs, too; what is computed stays the same. A leaf: anyone may import it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rcg.core.dropout import dropout as drop_out

MOST_KEYS = 512
"""Up to which three products train faster on a CPU in bf16 than the fused kernel. (Forward and backward on a core of an Intel Xeon with
AMX, ms, fused → products, batch x heads x tokens x width: 128 x 4 x 8 x 64 8.0 → 4.0, 128 x 4 x 17 x 64 62 → 8, 64 x 3 x 65 x 64
74 → 10, 128 x 6 x 64 x 64 169 → 44, 16 x 1 x 256 x 32 11.4 → 5.9; but 4 x 1 x 1,024 x 32 22 → 33.)"""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √D + bias) v.

    PyTorch's fused kernel; but while training on a CPU three batched products where that has no quick backward: in bf16, with
    dropout, and with a bias. Dropout then draws as `rcg.core.dropout` does.

    Args:
        q: [B, H, L, D].
        k, v: [B, H, S, D].
        bias: [1 or B, H, L, S].
        dropout: probability that a weight is dropped.

    Returns:
        [B, H, L, D].
    """
    if not _products_pay(q, k.shape[2], bias is not None or dropout > 0):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    batch, heads, length, width = q.shape
    q, k, v = (x.reshape(batch * heads, -1, width) for x in (q, k, v))
    products = torch.bmm(q, k.transpose(1, 2))
    if bias is None:
        weights = products.mul_(width**-0.5)
    else:
        weights = torch.add(bias, products.view(batch, heads, length, -1), alpha=width**-0.5).flatten(0, 1)
    y = torch.bmm(drop_out(weights.softmax(dim=-1), dropout, True), v)
    return y.view(batch, heads, length, width)


def _products_pay(q: Tensor, keys: int, always: bool) -> bool:
    training = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu"
    return training and (always or (q.dtype == torch.bfloat16 and keys <= MOST_KEYS))


@contextmanager
def quick_attention(x: Tensor) -> Iterator[None]:
    """Within it, other libraries' modules that train in bf16 on a CPU attend by `attend`; any other pass is left alone.

    Args:
        x: the input of the module.
    """
    training = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
    if not training or torch.compiler.is_compiling():
        yield
        return
    with _Attending():
        yield


class _Attending(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in the place of every function of torch."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) != 3 or args[0].ndim != 4:
            return func(*args, **kwargs)
        plain = not any(isinstance(value, Tensor) or value for value in kwargs.values())  # no mask, no scale, …
        return attend(*args) if plain else func(*args, **kwargs)
