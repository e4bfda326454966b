"""Several processes that measure one image set together, as torchrun starts them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from rcg.core.parts import Share

T = TypeVar("T")
PATIENCE = timedelta(hours=24)
"""How long a process waits for the slowest one."""


@dataclass(frozen=True)
class Processes:
    """This process among the others.

    Attributes:
        rank, world: number `rank` of `world`, from 0.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """RANK and WORLD_SIZE, as torchrun sets them; alone without them. Connects the processes.

        Raises:
            UserError: they are no such numbers.
        """
        share = Share.from_environment()
        found = cls(share.rank, share.world)
        if found.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        return found

    def share(self, total: int) -> tuple[int, int]:
        """The part [start, stop) of `total` images that is this process's."""
        return total * self.rank // self.world, total * (self.rank + 1) // self.world

    def gather(self, own: T) -> list[T]:
        """What all processes have, in the order of their ranks."""
        if self.world == 1:
            return [own]
        found: list[T] = [own] * self.world
        dist.all_gather_object(found, own)
        return found
