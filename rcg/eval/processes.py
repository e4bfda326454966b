"""Who measures an image set: this process alone, several as torchrun starts them, or workers of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import torch.distributed as dist
from tqdm import tqdm

from rcg.core.hardware import own_device
from rcg.core.parts import Share

T = TypeVar("T")
Work = Callable[[Share, Callable[[int], None]], T]
"""Does a share, and calls back with the number of images at each step of the way."""
PATIENCE = timedelta(hours=24)
"""How long a process waits for the slowest one."""


class Crew(Protocol):
    """Those who measure a set together."""

    @property
    def several(self) -> bool:
        """Whether a set is shared out, so that it must say how many images it has."""
        ...

    def device(self, asked: str) -> str:
        """Where its members compute, when `asked` is what a person wants: a device, or "auto"."""
        ...

    def each(self, work: Work[T], pieces: int, images: int | None, label: str | None) -> Iterator[T]:
        """What `work` makes of all shares.

        Args:
            work: sent to where it is done, if need be.
            pieces: how many shares are worth having at most.
            images: in all, if known.
            label: of the progress bar; None: no bar.
        """
        ...


@dataclass(frozen=True)
class Processes:
    """This process among the others; a `Crew`.

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

    @property
    def several(self) -> bool:
        """See `Crew`."""
        return self.world > 1

    def device(self, asked: str) -> str:
        """See `Crew`: of several GPUs each process takes its own."""
        return str(own_device(asked, Share(self.rank, self.world)))

    def each(self, work: Work[T], pieces: int, images: int | None, label: str | None) -> Iterator[T]:
        """See `Crew`; all processes get everything, in the order of their ranks."""
        own = images and images // self.world
        with tqdm(total=own, desc=label, unit="image", disable=label is None or self.rank > 0) as bar:

            def show(count: int) -> None:
                bar.update(count)

            made = work(Share(self.rank, self.world), show)
        yield from self.gather(made)

    def gather(self, own: T) -> list[T]:
        """What all processes have, in the order of their ranks."""
        if self.world == 1:
            return [own]
        found: list[T] = [own] * self.world
        dist.all_gather_object(found, own)
        return found
