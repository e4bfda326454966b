"""Which device and which arithmetic to use."""

from __future__ import annotations

import torch

from rcg.core.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one; `cuda` without a GPU is an error.

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no usable CUDA GPU; use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def bf16_pays(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here: Ampere or newer GPUs, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def pick_bf16(precision: str, device: torch.device) -> bool:
    """Resolve `auto`, `fp32` or `bf16` for a device."""
    return precision == "bf16" or (precision == "auto" and bf16_pays(device))
