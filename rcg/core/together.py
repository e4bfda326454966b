"""Processes that train together, through torch.distributed; one that is alone is one of one. A leaf: anyone may import it."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def connected() -> bool:
    """Whether this process belongs to a group, be it of one."""
    return dist.is_available() and dist.is_initialized()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if connected() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if connected() else 0


def everyones(value: Tensor, how: Literal["SUM", "MAX"] = "SUM") -> Tensor:
    """The sum or the largest over all processes, in place; without gradient."""
    if processes() > 1:
        dist.all_reduce(value, op=getattr(dist.ReduceOp, how))
    return value


def from_first(*values: Tensor) -> None:
    """What the first process holds, in place of everyone's."""
    if processes() > 1:
        for value in values:
            dist.broadcast(value, src=0)


def meet(device: torch.device) -> None:
    """Wait until all processes have come here; `device`, of this process, is what they talk through.

    `torch.distributed.barrier` with a process's number, as accelerate calls it, asks for a GPU of that number even where a
    group talks through CPUs.
    """
    if processes() > 1:
        everyones(torch.zeros((), device=device)).item()


class _Gather(torch.autograd.Function):
    """All processes' rows. Backward: every process's gradient of our rows, summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        everyone = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.count
        return everyones(gradient.contiguous().clone())[start : start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows [N, …] of all processes in the order of their ranks, [N · processes, …], with gradient.

    The gradient counts what the other processes' losses say of our rows. With each process's loss the mean over its own
    rows, and the gradients averaged over processes as DDP does, training computes what one process would on all rows.
    Every process must have as many rows.
    """
    return rows if processes() == 1 else _Gather.apply(rows)
