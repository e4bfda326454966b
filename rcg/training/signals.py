"""How a run ends early: Ctrl-C and a scheduler's SIGTERM, and the step at which all processes answer."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator

ASK_EVERY = 10
"""Every so many steps processes ask each other whether to stop; in between nothing waits …"""
ASK_SECONDS = 3.0
"""… but where steps are slow, they ask as often as this: a scheduler gives a run some 30 seconds after SIGTERM."""
AGAIN_SECONDS = 0.5
"""A Ctrl-C that follows a signal sooner is the same one, passed on by what started this process."""
STOPPING = b"\nStopping after this step, with a checkpoint; Ctrl-C (again) ends at once, without one.\n"


class StopSignals:
    """What was asked of a run from outside.

    Args:
        accelerator: of the run.
        last: the last step, at which processes ask in any case.

    Attributes:
        came: whether SIGINT or SIGTERM has reached this process.
    """

    def __init__(self, accelerator: Accelerator, last: int) -> None:
        self.accelerator, self.last = accelerator, last
        self.came = False
        self.asked, self.asks_at = (0, 0.0), 0  # step and time when processes last asked; the next step

    @contextlib.contextmanager
    def caught(self, step: int) -> Iterator[None]:
        """Within the block, from `step` on, signals are noted in place of ending the process; Ctrl-C after one ends it at once."""
        first: list[float] = []

        def stop(number: int, _: object) -> None:
            self.came = True
            if not first:
                first.append(time.perf_counter())
                if self.accelerator.is_main_process:
                    with contextlib.suppress(OSError):  # not by print, in the midst of which this may be
                        os.write(2, STOPPING)
            elif number == signal.SIGINT and time.perf_counter() - first[0] > AGAIN_SECONDS:
                raise KeyboardInterrupt

        self.asked = step, time.perf_counter()
        try:
            previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread
            previous = {}
        try:
            yield
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)

    def end_after(self, step: int) -> bool:
        """Whether the run ends after this step; a signal that reached any process ends all at the same one."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return self.came
        if step < self.asks_at and step != self.last:
            return False
        (before, then), now = self.asked, time.perf_counter()
        each = (now - then) / (step - before) if accelerator.is_main_process else 0.0  # so that all reckon alike
        said = torch.tensor([float(self.came), each], device=accelerator.device)
        came, each = accelerator.reduce(said, "sum").tolist()
        every = max(1, min(ASK_EVERY, int(ASK_SECONDS / max(each, 1e-9))))
        self.asked, self.asks_at = (step, now), step + every - step % every
        return bool(came > 0)
