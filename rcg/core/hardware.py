"""Which device and which arithmetic to use."""

from __future__ import annotations

import os

import torch

from rcg.core.errors import UserError
from rcg.core.parts import Share


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


def own_device(name: str, share: Share) -> torch.device:
    """As `pick_device`; of several GPUs each of several processes takes its own, by its number on its machine."""
    device = pick_device(name)
    if device.type == "cuda" and share.world > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", share.rank)) % torch.cuda.device_count())
    return device


def check_one_each(device: torch.device) -> None:
    """Processes that train together on GPUs need one each: NCCL does not connect two on the same.

    Raises:
        UserError: this machine has fewer GPUs than processes of the job.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and processes > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"{processes} processes were started on a machine with {gpus} GPU{'s' * (gpus != 1)}; start one for each GPU "
            f"(torchrun --nproc-per-node {gpus}), or train with --device cpu."
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_free_core(device: torch.device) -> bool:
    """Whether a thread beside those that compute on `device` has a core to itself.

    Where it has none, and holds Python's lock while another thread has its core, all wait: 8 % of an evaluation on a CPU.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return device.type != "cpu" or torch.get_num_threads() * processes < cores()


def bf16_pays(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here: Ampere or newer GPUs, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def pick_bf16(precision: str, device: torch.device) -> bool:
    """Resolve `auto`, `fp32` or `bf16` for a device."""
    return precision == "bf16" or (precision == "auto" and bf16_pays(device))
