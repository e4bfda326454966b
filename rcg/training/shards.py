"""Tensors of which each process holds some rows (FSDP's `DTensor`s), beside those that every process holds whole.

The functions here take both kinds, so that optimisers, averages and checkpoints need not know which they have. Cut tensors lie
in chunks along their first axis, one for each process of the whole group; the last ones may be shorter, or empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_cut(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of it."""
    return hasattr(tensor, "full_tensor")  # a DTensor; importing its module takes a second, for nothing as a rule


@torch.no_grad()
def own(tensor: Tensor) -> Tensor:
    """The rows of this process, as a view without gradient; of a whole tensor, all."""
    return cast(Any, tensor).to_local().detach() if is_cut(tensor) else tensor.detach()


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. For a cut one all processes must ask together."""
    return cast(Any, tensor).full_tensor().detach() if is_cut(tensor) else tensor


def joined(rows: Tensor, like: Tensor) -> Tensor:
    """The tensor of which each process holds its `rows`, cut as `like` is; shares their memory."""
    if not is_cut(like):
        return rows
    from torch.distributed.tensor import DTensor

    known = cast(DTensor, like)
    return DTensor.from_local(
        rows, known.device_mesh, known.placements, run_check=False, shape=known.shape, stride=known.stride()
    )


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor that all processes have, what belongs here if it is to be cut as `like` is; on the device of `like`.

    What has not the shape of `like` stays whole.
    """
    if not is_cut(like) or tensor.shape != like.shape:
        return tensor
    here = own(like)
    start = min(dist.get_rank() * -(-len(tensor) // dist.get_world_size()), len(tensor))
    return joined(tensor[start : start + len(here)].to(here.device, copy=True), like)


def gather(tensors: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, put together one after the other, so that no device ever holds more than one of them.

    Args:
        tensors: the same names in the same order in all processes.
        keep: whether this process wants them; the others only help. What was cut comes to the CPU, what was whole stays.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        full = whole(tensor)
        if keep:
            found[name] = full.cpu() if is_cut(tensor) else full
    return found


def norm(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, the same in all processes. Nothing waits for the device."""
    rows = [own(g) for g in gradients if is_cut(g)]
    rest = [g for g in gradients if not is_cut(g)]
    if not rows:
        return _norm(rest)
    square = _norm(rows).square()
    dist.all_reduce(square)
    return (square + _norm(rest).square()).sqrt() if rest else square.sqrt()


def _norm(gradients: list[Tensor]) -> Tensor:
    """On CPUs by dot products, which take half of the time."""
    if gradients[0].device.type != "cpu":
        return nn.utils.get_total_norm(gradients)
    return torch.stack([torch.dot(g, g) for g in (g.flatten() for g in gradients)]).sum().sqrt()
