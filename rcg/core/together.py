"""Processes that train together, through torch.distributed; one that is alone is one of one. A leaf: anyone may import it."""

from __future__ import annotations

from typing import Literal

import torch.distributed as dist
from torch import Tensor


def connected() -> bool:
    """Whether this process belongs to a group, be it of one."""
    return dist.is_available() and dist.is_initialized()


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if connected() else 1


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
