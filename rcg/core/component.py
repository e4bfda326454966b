"""Weights of a loaded model lie in memory as if the model had just been made. A leaf: anyone may import it."""

from __future__ import annotations

from typing import Any, Self

import torch

ALIGNMENT = 64
"""Bytes; that of PyTorch's own allocations on CPUs."""


def settle_weights(module: torch.nn.Module) -> None:
    """Give each weight and buffer on the CPU contiguous memory of its own at a multiple of `ALIGNMENT`, if it has not.

    Weights that are mapped from a file lie at any address, and matrix libraries choose their kernels, whose last bits
    differ, by address and strides: without this, a loaded model and the one that was saved need not compute the same.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        data = tensor.data
        if data.device.type != "cpu" or data.numel() == 0:
            continue
        plain = torch.empty(0).new_empty(data.shape, device="meta").stride() == data.stride()
        if data.data_ptr() % ALIGNMENT or not plain:
            tensor.data = data.clone(memory_format=torch.contiguous_format)


class Settled:
    """For a diffusers model, before `ModelMixin` among its bases: what is loaded has settled weights."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As of diffusers, see `settle_weights`."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        settle_weights(loaded[0] if isinstance(loaded, tuple) else loaded)  # a tuple with output_loading_info
        model: Self = loaded
        return model
