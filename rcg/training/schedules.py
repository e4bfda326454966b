"""Learning-rate and averaging schedules, as plain functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rcg.training.config import TrainingConfig
from rcg.training.shards import cut, joined, own


def warmup_steps(total_steps: int, config: TrainingConfig) -> float:
    """How long the learning rate rises in a run of so many steps."""
    return config.warmup if config.warmup >= 1 else config.warmup * total_steps


def lr_factor(step: int, total_steps: int, config: TrainingConfig, warmup: float | None = None) -> float:
    """The share of the peak learning rate at optimiser step `step` (from 0): linear warm-up, then constant or cosine.

    Args:
        step: of the run.
        total_steps: of the run, as it is planned now.
        config: of the run.
        warmup: steps that it takes; None: `warmup_steps`, but a run that was begun for another number of steps keeps its own.
    """
    warmup = warmup_steps(total_steps, config) if warmup is None else warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1.0, total_steps - warmup)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decay_factor(step: int, total_steps: int, config: TrainingConfig) -> float:
    """The weight decay at optimiser step `step` (from 0) as a multiple of the first one: half a cosine to the last."""
    if config.weight_decay_end is None or config.weight_decay_end == config.weight_decay:
        return 1.0
    share = 0.5 * (1 - math.cos(math.pi * min(1.0, step / max(1, total_steps - 1))))
    return 1 + (config.weight_decay_end / config.weight_decay - 1) * share


def ema_decay(updates: int, decay: float) -> float:
    """Decay of the `updates`-th update (from 1): min(decay, (1+n)/(10+n)), the warm-up of the RCG reference."""
    return min(decay, (1 + updates) / (10 + updates))


class EMA:
    """Exponential moving averages of several modules' parameters (fp32); buffers are carried along unaveraged.

    Of parameters that are cut up among processes, each averages its own rows.

    Args:
        modules: name → module; the averages start as copies of their weights.
        decay: the long-run decay in [0, 1).
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.modules = modules
        self.decay = decay
        self.updates = 0
        self._live = [p for m in modules.values() for p in m.parameters()]
        self._average = [own(p).float().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights; call once after each optimiser step."""
        self.updates += 1
        if not self._live:
            return
        weight = 1 - ema_decay(self.updates, self.decay)
        torch._foreach_lerp_(self._average, [own(p).float() for p in self._live], weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the modules hold the averages; afterwards their own weights again, bit for bit.

        Only where no parameter is cut up; see `Sharded.assembled` for others.
        """
        own = [p.detach().clone() for p in self._live]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._live, values, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, torch.Tensor]:
        """The averages under `module.parameter` names."""
        names = [f"{m}.{k}" for m, module in self.modules.items() for k, _ in module.named_parameters()]
        return {name: joined(average, p) for name, p, average in zip(names, self._live, self._average, strict=True)}

    def averages(self) -> dict[nn.Parameter, torch.Tensor]:
        """The average of each parameter, cut up as it is."""
        return {p: joined(average, p) for p, average in zip(self._live, self._average, strict=True)}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Restore what `state` gave; the names have been checked by the caller."""
        for name, average in self.state().items():
            own(average).copy_(own(cut(state[name], average)))
        self.updates = updates
