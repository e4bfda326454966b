"""Weights of a loaded model lie in memory as if the model had just been made. A leaf: anyone may import it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin

from rcg.core.files import atomic_file

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


def align_file(file: Path) -> None:
    """Lengthen the header of a .safetensors file (by spaces, as the format allows) so that its data begin aligned.

    Tensors mapped from it then lie at multiples of `ALIGNMENT`, if their sizes are such multiples, and need no copy.
    """
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if missing := -(8 + length) % ALIGNMENT:
            with atomic_file(file) as temporary, temporary.open("wb") as target:
                target.write((length + missing).to_bytes(8, "little") + source.read(length) + b" " * missing)
                shutil.copyfileobj(source, target, 2**24)


class Settled:
    """For a diffusers model, before `ModelMixin` among its bases: what is loaded has settled weights.

    What is saved is laid out so that loading needs no copy for it.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As of diffusers, see `settle_weights`."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        settle_weights(loaded[0] if isinstance(loaded, tuple) else loaded)  # a tuple with output_loading_info
        model: Self = loaded
        return model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As of diffusers, see `align_file`."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        for file in Path(save_directory).glob("*.safetensors"):
            align_file(file)

    # the signature is diffusers' own: its pipelines look at it
    save_pretrained.__wrapped__ = ModelMixin.save_pretrained  # type: ignore[attr-defined]
