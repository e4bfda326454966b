"""Weights of a loaded model lie in memory as if the model had just been made. A leaf: anyone may import it."""

from __future__ import annotations

from typing import Any, Self

import torch

ALIGNMENT = 64
"""Bytes; that of PyTorch's own allocations on CPUs."""


def settle_weights(module: torch.nn.Module) -> None:
    """Give all weights and buffers on the CPU contiguous memory of their own at multiples of `ALIGNMENT`, if some have not.

    Weights that are mapped from a file lie at any address, and matrix libraries choose their kernels, whose last bits
    differ, by address and strides: without this, a loaded model and the one that was saved need not compute the same.
    All or none, so that the mapped file is let go.
    """
    tensors = [t for t in [*module.parameters(), *module.buffers()] if t.device.type == "cpu" and t.numel()]
    if all(t.data_ptr() % ALIGNMENT == 0 and _plain(t) for t in tensors):
        return
    for tensor in tensors:
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def _plain(tensor: torch.Tensor) -> bool:
    return torch.empty(tensor.shape, device="meta").stride() == tensor.stride()


class Settled:
    """For a diffusers model, before `ModelMixin` among its bases: what is loaded has settled weights."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As of diffusers, see `settle_weights`."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        settle_weights(loaded[0] if isinstance(loaded, tuple) else loaded)  # a tuple with output_loading_info
        model: Self = loaded
        return model
