"""Which arithmetic a frozen model computes in, and bf16 copies of models for machines where that is faster."""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from rcg.core.errors import UserError
from rcg.core.hardware import pick_bf16
from rcg.core.mapped import MappedFiles

Precision = Literal["auto", "fp32", "bf16"]
Model = TypeVar("Model", bound=nn.Module)

_copies: weakref.WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = weakref.WeakKeyDictionary()


def in_precision(model: Model, precision: Precision) -> Model:
    """The model itself, or its bf16 copy if `precision` says so and the model is fp32.

    A copy is made on the first call, kept as long as the model lives, and made anew when a weight has changed since, as far
    as PyTorch counts the changes. It counts none by fused optimisers, so who trains the model says `forget`, and none to
    weights made in `torch.inference_mode`.
    Submodules named in the model's `keep_in_fp32` stay fp32.

    Args:
        model: in evaluation mode.
        precision: "auto" is bf16 where the hardware multiplies it faster (see `rcg.core.hardware.bf16_pays`).

    Raises:
        UserError: another precision.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}, but it must be one of {', '.join(get_args(Precision))}.")
    weights = list(model.parameters())
    if not weights or weights[0].dtype != torch.float32 or not pick_bf16(precision, weights[0].device):
        return model
    state = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)
    made = _copies.get(model)
    if made is None or made[0] != state:
        _copies.pop(model, None)
        made = (state, _halved(model))
        _copies[model] = made
    return made[1]  # type: ignore[return-value]


@contextlib.contextmanager
def whole_fp32() -> Iterator[None]:
    """Within, a GPU multiplies whole float32 numbers, not their first 10 bits (TF32), as it does in convolutions by default."""
    flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def forget(model: nn.Module) -> None:
    """Let go of the model's bf16 copy, if there is one."""
    _copies.pop(model, None)


def _halved(model: nn.Module) -> nn.Module:
    kept = tuple(f"{name}." for name in getattr(model, "keep_in_fp32", ()))
    memo: dict[int, object] = {}
    files = MappedFiles()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values = tensor.detach()
        if tensor.is_floating_point() and not name.startswith(kept):
            values = values.to(torch.bfloat16)
            files.let_go(tensor.detach())  # nobody computes with it while there is a copy
        memo[id(tensor)] = nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values
    half = copy.deepcopy(model, memo).eval()
    if next(half.parameters()).device.type == "cpu" and _can_pack():
        for parent in list(half.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
                    setattr(parent, name, _PackedLinear(child))
    return half


class _PackedLinear(nn.Module):
    """A linear layer whose weights lie in oneDNN's own order: `nn.Linear` would bring them into it at every call.

    The results are equal bit for bit; with few rows it takes little more than half of the time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in_features] → […, out_features]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


@functools.cache
def _can_pack() -> bool:
    """Whether this PyTorch has the operators that its compiler uses for frozen linear layers, and they compute right."""
    linear, x = nn.Linear(64, 32).to(torch.bfloat16), torch.ones(3, 64, dtype=torch.bfloat16)
    try:
        with torch.no_grad():
            return torch.allclose(_PackedLinear(linear)(x), linear(x), rtol=0.02, atol=0.02)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
