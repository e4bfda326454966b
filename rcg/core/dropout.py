"""Dropout that is quick on CPUs, and stochastic depth; a sample's own seed decides what it loses (`rcg.core.draws`)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.draws import random_words, uniform


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each value with probability `p` and divide the others by 1 − p, while training.

    On a CPU the values are chosen by 16 random bits each, so that `p` is met to 2**-17 (next to 1, to 2**-16). PyTorch draws
    a Bernoulli variate for each, which takes five times as long: a third of a training step of MAGE.

    Args:
        x: of any shape and floating-point type.
        p: in [0, 1).
        training: whether to do anything.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    return cast(Tensor, _Dropout.apply(x, p))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        dropped = min(round(p * 2**16), 2**16 - 1)
        kept, ctx.scale = _kept(x, dropped), 2**16 / (2**16 - dropped)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * ctx.saved_tensors[0]).mul_(ctx.scale), None


def _kept(x: Tensor, dropped: int) -> Tensor:
    """Like x, 0 with probability `dropped` / 2**16, else 1."""
    each = math.prod(x.shape[1:])
    words = random_words(len(x), each) if x.ndim else None
    if words is None:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    else:
        bits = words.view(torch.int16)[:, :each].view(x.shape)
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits, dropped - 2**15, out=kept)
    return kept


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, some of it zeroed."""
        return dropout(x, self.p, self.training)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): a residual block's branch is left out for a row, while training.

    Args:
        p: probability in [0, 1); branches that stay are divided by 1 − p.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x [B, …], a sample's rows together."""
        if not self.training or self.p == 0:
            return x
        kept = (uniform((len(x),), x.device) >= self.p).to(x.dtype) / (1 - self.p)
        return x * kept.view(-1, *[1] * (x.ndim - 1))


def replace_dropouts(model: nn.Module) -> None:
    """Put `Dropout` and `DropPath` in the place of those of other libraries' models, also where timm's attention is one kernel."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
            elif type(child).__name__ == "DropPath" and hasattr(
                child, "drop_prob"
            ):  # timm's, which is not imported for it
                setattr(parent, name, DropPath(cast(float, child.drop_prob or 0.0)))
        if getattr(parent, "fused_attn", False) and getattr(getattr(parent, "attn_drop", None), "p", 0):
            cast(Any, parent).fused_attn = False


def silence(model: nn.Module) -> None:
    """Let a model drop nothing, not even in training mode, as those do that make targets."""
    for module in model.modules():
        if isinstance(module, Dropout | DropPath):
            module.p = 0.0


def drop_paths(model: nn.Module, rate: float) -> None:
    """Give the blocks of a timm ViT stochastic depth: from 0 in the first to `rate` in the last, in equal steps."""
    blocks = [m for m in model.modules() if hasattr(m, "drop_path1") and hasattr(m, "drop_path2")]
    for number, block in enumerate(blocks):
        p = rate * number / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = DropPath(p), DropPath(p)
