"""Work in parts: each a share of whole files, done by anybody, in any order, more than once if need be."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rcg.core.errors import UserError
from rcg.core.schema import read_json


@dataclass(frozen=True)
class Share:
    """Which units of a work are meant: rank, rank + world, rank + 2·world, …

    Attributes:
        rank, world: see above.
        job: of torchrun or SLURM (see `job`), to which this process was given the share.
    """

    rank: int = 0
    world: int = 1
    job: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_environment(cls) -> Share:
        """RANK and WORLD_SIZE, as torchrun and accelerate set them; alone without them."""
        try:
            share = cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), job())
        except ValueError:
            raise UserError("RANK and WORLD_SIZE must be whole numbers; start the processes with torchrun.") from None
        if not 0 <= share.rank < share.world:
            raise UserError(f"RANK {share.rank} does not lie below WORLD_SIZE {share.world}; start with torchrun.")
        return share

    @classmethod
    def parse(cls, text: str) -> Share:
        """From words such as 3/16, the third of 16.

        Raises:
            UserError: anything else.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--part {text!r} is no part; give K/N with K from 1 to N, such as 3/16.")
        return cls(int(match[1]) - 1, int(match[2]), job())

    def of(self, count: int) -> range:
        """The numbers of this share's ones of `count` units."""
        return range(self.rank, count, self.world)

    def run_of(self, count: int) -> range:
        """As `of`, but units that follow each other: the rank-th of `world` runs."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def _word(self, folder: Path) -> Path:
        return folder / f".job-{self.rank:05d}.json"

    def note(self, folder: Path) -> None:
        """Leave word of its job in `folder`, of whose run it has begun this share; see `began`."""
        if self.job:
            from rcg.core.files import write_json  # it loads torch

            write_json(self._word(folder), dict(self.job))

    def began(self, folder: Path) -> bool:
        """Whether this process was started again (`restarted`) by the job that last began this share in `folder`."""
        word = self._word(folder)
        return word.is_file() and restarted(read_json(word, dict[str, str]))


_RESTARTS = {"TORCHELASTIC_RUN_ID": "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID": "SLURM_RESTART_COUNT"}
"""Of torchrun and SLURM: which variable names a job, and which counts how often it was started again."""


def job() -> dict[str, str]:
    """By what torchrun and SLURM know this job: equal in all its processes, and when they are started again."""
    found = {name: os.environ[name] for name in _RESTARTS if name in os.environ}
    if found.get("TORCHELASTIC_RUN_ID") == "none" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        found["TORCHELASTIC_RUN_ID"] = f"none, process {os.getppid()}"  # torchrun's own
    return found


def restarted(began: Mapping[str, str] | None = None) -> bool:
    """Whether torchrun (--max-restarts) or SLURM (--requeue) has started this process again after a failure.

    Then the command is the one that began the run, and what it left is to be gone on with, without `--resume`.

    Args:
        began: the `job` that began what is there; a start again of another one does not count. None: of any.
    """
    now = job()
    again = [name for name, count in _RESTARTS.items() if re.fullmatch("0*[1-9][0-9]*", os.environ.get(count, "0"))]
    return any(began is None or began.get(name) == now.get(name) for name in again)


def cannot_restart() -> str | None:
    """Why torchrun's --max-restarts will not help these processes, with the way out; None where it will, or is not wanted.

    By default the processes of a restarted group meet in the store that torchrun kept from the one before (PyTorch 2.5 and
    later), find the addresses of dead processes there, and wait for them until they time out.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not kept or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return None
    return (
        "torchrun --max-restarts: a group that is started again may wait for ever for dead processes; set "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun."
    )


class Job(Protocol):
    """Work that an engine shares out. Made where it is done; what it computes does not depend on who does which part."""

    @property
    def parts(self) -> int:
        """How many parts it is to be cut into."""
        ...

    def claim(self) -> None:
        """Once, before any part: make the place of the results this work's, or refuse with `UserError`."""
        ...

    def do(self, part: Share) -> None:
        """Do one part; what is there already, from one that was killed, is kept."""
        ...

    def finish(self) -> None:
        """Once, after all parts."""
        ...


Opener = Callable[[], Job]
"""Loads what a job needs and makes it; can be pickled and sent elsewhere."""
