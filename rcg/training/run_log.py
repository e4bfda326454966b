"""What a run leaves to read: a log file of JSON lines, a progress bar, sample pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rcg.core.durations import in_words
from rcg.core.files import keep_lines
from rcg.training.checkpoints import OpenAverages

FORECAST_STEPS = 20
FORECAST_SECONDS = 20.0
"""A run's length is said after so many steps or so much time, whichever comes first."""
SHORT_SECONDS = 120.0
"""Nothing is said when the rest takes less."""
GOALS = (60.0, 600.0, 3600.0, 8 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)
"""Lengths that a run may be cut to; the longest one that is at most half of the run is proposed."""


class Forecast:
    """How long a run will take, said once, when its first steps have been measured.

    Args:
        start, total: the step that the run goes on from, and its last one.
    """

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total
        self._first: float | None = None
        self._said = False

    def after(self, step: int, now: float) -> str | None:
        """The sentence to say after `step` steps at the time `now` (seconds of any clock), mostly None.

        The first step, in which much is set up, is not counted.
        """
        if self._said or self._first is None:
            self._first = now if self._first is None else self._first
            return None
        steps, seconds = step - self.start - 1, now - self._first
        if steps < FORECAST_STEPS and seconds < FORECAST_SECONDS:
            return None
        self._said = True
        each = seconds / steps
        left = self.total - step
        if left * each < SHORT_SECONDS:
            return None
        goal = max(g for g in GOALS if g <= max(GOALS[0], left * each / 2))
        which = f"{self.total:,} steps" if self.start == 0 else f"the {left:,} steps that are left"
        return (
            f"This takes about {in_words(left * each)} for {which}; to be done in {in_words(goal)}, start with --steps "
            f"{max(1, self.start + int(goal / each))}, or take a smaller model."
        )


class Averages:
    """Figures averaged between two lines of the log: over the steps, and over all processes, each with its share of the batch.

    Args:
        reduce: a tensor → its mean over the processes.
        gather: a tensor [K] → those of all processes, one after the other.
        share: of a batch that this process computes, times the number of processes: its weight in the mean.
        rank: of this process.
    """

    def __init__(
        self,
        reduce: Callable[[torch.Tensor], torch.Tensor],
        gather: Callable[[torch.Tensor], torch.Tensor],
        share: float,
        rank: int,
    ) -> None:
        self._reduce, self._gather, self._share, self._rank = reduce, gather, share, rank
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}

    def add(self, values: dict[str, torch.Tensor], good: torch.Tensor) -> None:
        """Count one step's figures of this process if `good` (bool scalar), without waiting for the device."""
        for key, value in values.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
            value, count = torch.where(good, value, 0), good.long()
            self._sums[key] = self._sums.get(key, 0) + value
            self._counts[key] = self._counts.get(key, 0) + count

    def take(self) -> dict[str, float]:
        """The averages, which then begin anew; called in all processes together."""
        keys = [k for k, count in self._counts.items() if count]
        means = [self._sums[k] / self._counts[k] * self._share for k in keys]
        self._sums, self._counts = {}, {}
        return dict(zip(keys, self._reduce(torch.stack(means)).tolist(), strict=True)) if keys else {}

    def state(self) -> OpenAverages:
        """The open averages, for the checkpoint; called in all processes together."""
        keys = list(self._sums)
        sums = (
            self._gather(torch.stack([self._sums[k] for k in keys])).view(-1, len(keys)) if keys else torch.zeros(1, 0)
        )
        return {
            "counts": {k: int(v) for k, v in self._counts.items()},
            "sums": dict(zip(keys, sums.T.tolist(), strict=True)),
        }

    def load(self, state: OpenAverages, world: int, device: torch.device) -> None:
        """Go on averaging where `state` was taken, as one of `world` processes; another number takes the mean of those before."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._counts = {k: torch.tensor(v, device=device) for k, v in state["counts"].items()}
        for key, sums in state["sums"].items():
            parts = sums if isinstance(sums, list) else [sums]  # one number: the main process's, of an older version
            own = parts[self._rank] if len(parts) == world else sum(parts) / len(parts)
            self._sums[key] = torch.tensor(own, dtype=dtype, device=device)


class RunLog:
    """Writes what there is to read of a run; only the main process makes one.

    Args:
        path: the `log.jsonl` file.
        total, start: steps of the run, and the step it goes on from.
        name: shown by the progress bar.
        tracker: called as `tracker(values, step)` beside the file (TensorBoard, W&B).
        quiet: show no progress bar and say nothing of the run's length, because somebody else does.
    """

    def __init__(
        self,
        path: Path,
        total: int,
        start: int,
        name: str,
        tracker: Callable[[dict[str, float], int], None],
        quiet: bool = False,
    ) -> None:
        self.path = path
        self._forecast = None if quiet else Forecast(start, total)
        self._tracker = tracker
        path.parent.mkdir(parents=True, exist_ok=True)
        if start == 0:
            path.unlink(missing_ok=True)
        # what a killed run logged after its last checkpoint will be computed, and logged, again
        keep_lines(self.path, lambda line: line["step"] <= start)
        self.bar = tqdm(
            total=total, initial=start, desc=name, unit="step", dynamic_ncols=True, mininterval=1.0, disable=quiet
        )

    def sync(self) -> None:
        """Force what has been written onto the disk, so that a checkpoint is not there without its log."""
        with self.path.open("ab") as f:
            os.fsync(f.fileno())

    def evaluation(self, step: int) -> dict[str, float]:
        """The figures of the evaluation after `step` steps, NaN where one was not finite; none if there was no evaluation."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []
        of_step = [line for line in map(json.loads, lines) if line["step"] == step]
        found = {k: v for line in of_step for k, v in line.items() if k.startswith("eval/")}
        return {k.removeprefix("eval/"): math.nan if v is None else v for k, v in found.items()}

    def advance(self, step: int, now: float) -> None:
        """Show that `step` steps are done at the time `now`, and once how long the rest will take."""
        self.bar.update()
        if self._forecast is not None and (sentence := self._forecast.after(step, now)) is not None:
            self.bar.write(sentence)

    def write_step(self, step: int, values: dict[str, float], **more: float) -> None:
        """Write averages since the last line, with the figures in `more`."""
        self.write(step, values | more)
        shown = {k: f"{v:.4g}" for k, v in values.items() if k.split("/")[-1] == "loss"}
        self.bar.set_postfix(shown, refresh=False)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append one line and tell the tracker; a figure that is not finite is written as null."""
        finite = {k: v if v == v and abs(v) != float("inf") else None for k, v in values.items()}
        with self.path.open("a") as f:
            f.write(json.dumps({"step": step, **finite}) + "\n")
        self._tracker({k: v for k, v in finite.items() if v is not None}, step)
