"""Where a training's time goes: waiting for data, forward, backward, optimiser, waiting for other processes, the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from rcg.core.hardware import cores

Phase = Literal["data", "prepare", "forward", "backward", "optimizer", "wait", "other"]
"""`prepare` is what frozen models and augmentation take, `wait` what other processes take, `other` logging, evaluations,
pictures and checkpoints."""
PHASES: tuple[Phase, ...] = get_args(Phase)
SLOW_SHARE = 0.3
"""Of the time; who waits longer for data is told so, …"""
SLOW_SECONDS = 30.0
"""… once that has been so for this long without a break …"""
SLOW_LINES = 3
"""… and in so many lines of the log."""
MOST_WORKERS = 8
"""Proposed to who has fewer; who has as many and still waits is told twice as many, where there are cores for them."""


class StepTimes:
    """Seconds by phase, measured without waiting for the device.

    On a CPU by the clock. On a GPU by events in its stream: what they say is read with `read`, when the device has caught up
    anyway. There, `data` is how long the device stood still for want of data, not how long the program waited for them.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[Phase | None, Any]] = []
        self._spare: list[Any] = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._last = 0.0
        self.total = dict.fromkeys(PHASES, 0.0)
        """Of the whole run, as far as it has been read."""

    def start(self) -> None:
        """From here on time counts."""
        self._mark(None)

    def mark(self, phase: Phase) -> None:
        """What has gone by since the last mark was `phase`."""
        self._mark(phase)

    def _mark(self, phase: Phase | None) -> None:
        if self._cuda:
            event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
            return
        now = time.perf_counter()
        if phase is not None:
            self._seconds[phase] += now - self._last
        self._last = now

    def read(self) -> dict[Phase, float]:
        """Seconds by phase since the last reading. On a GPU it waits for the last mark."""
        if self._cuda and self._marks:
            self._marks[-1][1].synchronize()
            for (_, before), (phase, event) in zip(self._marks, self._marks[1:], strict=False):
                if phase is not None:
                    self._seconds[phase] += before.elapsed_time(event) / 1000
            self._spare += [event for _, event in self._marks[:-1]]
            del self._marks[:-1]
        found, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        for phase, seconds in found.items():
            self.total[phase] += seconds
        return found


def shares(seconds: Mapping[Phase, float]) -> dict[str, float]:
    """`time/PHASE` → its share of the whole, of those phases that took any time worth a number."""
    whole = sum(seconds.values())
    found = {f"time/{phase}": round(value / whole, 4) for phase, value in seconds.items()} if whole > 0 else {}
    return {name: share for name, share in found.items() if share}


def in_percent(seconds: Mapping[Phase, float]) -> str:
    """`data 3 %, forward 30 %, …`, in the order of a step; what rounds to nothing is left out."""
    return ", ".join(
        f"{k.removeprefix('time/')} {v:.0%}".replace("%", " %") for k, v in shares(seconds).items() if v >= 0.005
    )


class DataWatch:
    """Says once that a training waits for its data, and what helps.

    Args:
        num_workers: processes that read data now.
        processes: of the training, on this machine.
    """

    def __init__(self, num_workers: int, processes: int = 1) -> None:
        self.num_workers, self.processes = num_workers, processes
        self._slow = dict.fromkeys(PHASES, 0.0)
        self._lines = 0
        self._first = True
        self._said = False

    def after(self, seconds: Mapping[Phase, float]) -> str | None:
        """The sentence to say after a line of the log that took `seconds`, mostly None.

        The first line does not count: workers start and files come from a disk then.
        """
        whole = sum(seconds.values())
        if self._first or self._said or whole <= 0:
            self._first = False
            return None
        if seconds["data"] / whole <= SLOW_SHARE:
            self._slow, self._lines = dict.fromkeys(PHASES, 0.0), 0
            return None
        self._slow = {phase: self._slow[phase] + seconds[phase] for phase in PHASES}
        self._lines += 1
        whole = sum(self._slow.values())
        if self._lines < SLOW_LINES or whole < SLOW_SECONDS:
            return None
        self._said = True
        return f"The training waits for data {self._slow['data'] / whole:.0%} of the time: {self._way_out()}.".replace(
            "%", " %"
        )

    def _way_out(self) -> str:
        most = MOST_WORKERS if self.num_workers < MOST_WORKERS else 2 * self.num_workers
        useful = min(most, cores() // self.processes - 1)
        cache = "let rcg-cache make what it needs once and give --data CACHE, if these are images"
        if useful > self.num_workers:
            return f"give --num-workers {useful} (now {self.num_workers}), or {cache}"
        return f"{cache}, or lay the data on a faster disk; more --num-workers than {self.num_workers} do not help on these {cores()} cores"
