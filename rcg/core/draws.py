"""Random numbers of a training step that follow from the samples, not from the processes that compute them.

Within `drawing_for`, which the training loop enters, the numbers that a sample gets depend on that sample's seed and on how
many draws came before; its neighbours, the micro-batch and the process have no say. A run may therefore go on with
another number of processes. Outside of it the functions draw from torch's global generator, like torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rcg.core.rng import Noise, derive_seed, sample_seeds


class _Samples:
    """The samples at hand: their seeds, their places in the whole batch, and how much has been drawn for them."""

    def __init__(self, seeds: np.ndarray, start: int, whole: int, group: int) -> None:
        self.seeds = (seeds >> np.uint64(1)).astype(np.int64)
        self.start, self.whole, self.group = start, whole, group
        self._noise: dict[torch.device, Noise] = {}
        self.draws = self.shared = 0

    def noise(self, device: torch.device | str) -> Noise:
        """What makes the numbers where they are wanted."""
        device = torch.device(device)
        if device not in self._noise:
            self._noise[device] = Noise(self.seeds.tolist(), device)
        return self._noise[device]

    def next(self) -> int:
        self.draws += 1
        return self.draws - 1

    def each(self, count: int) -> int:
        """How many of `count` rows belong to a sample."""
        if count % len(self.seeds):
            raise ValueError(f"{count} rows are drawn for, which are no whole number for each of {len(self.seeds)}")
        return count // len(self.seeds)


_here: _Samples | None = None


@contextmanager
def drawing_for(seeds: np.ndarray, start: int, whole: int, group: int) -> Iterator[None]:
    """Within the block the functions of this file draw for these samples.

    Args:
        seeds: uint64 [B], one for each sample.
        start: place of the first of them in the whole batch, in which they follow each other.
        whole: samples in the whole batch.
        group: a number for `shared`, equal for all samples that are to share it.
    """
    global _here
    before, _here = _here, _Samples(seeds, start, whole, group)
    try:
        yield
    finally:
        _here = before


@torch.compiler.disable
def uniform(shape: tuple[int, ...] | torch.Size, device: torch.device | str = "cpu") -> Tensor:
    """float32 of a shape, uniform in [0, 1). The first axis has one row for each sample, or several, one sample's together."""
    if _here is None:
        return torch.rand(shape, device=device)
    _here.each(shape[0])
    rows = len(_here.seeds)
    return _here.noise(device).single(_here.next(), math.prod(shape) // rows).reshape(shape)


@torch.compiler.disable
def normal_like(x: Tensor) -> Tensor:
    """Standard normal numbers of the shape, type and device of x [B, …]."""
    if _here is None:
        return torch.randn_like(x)
    _here.each(len(x))
    rows = len(_here.seeds)
    return _here.noise(x.device).normal(_here.next(), x.numel() // rows).reshape(x.shape).to(x.dtype)


@torch.compiler.disable
def integers(high: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [count], uniform in [0, high); high below 2**24."""
    if _here is None:
        return torch.randint(high, (count,), device=device)
    return (uniform((count,), device).double() * high).long()


@torch.compiler.disable
def stratified(count: int, device: torch.device | str = "cpu") -> Tensor:
    """float32 [count] in [0, 1): of all samples of the whole batch, one falls in each of as many equal parts."""
    if _here is not None and _here.each(count) != 1:
        raise ValueError(f"{count} places for {len(_here.seeds)} samples")
    start, whole = (0, count) if _here is None else (_here.start, _here.whole)
    places = torch.arange(count, device=device) + start
    return ((places + uniform((count,), device)) / whole).clamp_max(1 - 2**-24)  # the sum may be rounded up


@torch.compiler.disable
def shared() -> float:
    """One number, uniform in [0, 1), for all samples that are computed together (see `Stage.grouped`)."""
    if _here is None:
        return float(torch.rand((), dtype=torch.float64))
    _here.shared += 1
    return derive_seed(_here.group, _here.shared) / 2.0**63


def random_words(rows: int, count: int) -> Tensor | None:
    """int64 [rows, count / 4 rounded up] on the CPU, all bits random, sample by sample; None outside of `drawing_for`.

    Args:
        rows: first axis of what is drawn for.
        count: 16-bit numbers that a row needs.
    """
    if _here is None or torch.compiler.is_compiling():
        return None
    each = _here.each(rows)
    words = torch.empty(len(_here.seeds), each * -(-count // 4), dtype=torch.int64)
    numbers = np.full(len(_here.seeds), _here.next(), np.int64)
    generator = torch.Generator()
    for row, seed in zip(words, sample_seeds(0, numbers, _here.seeds).tolist(), strict=True):
        row.random_(-(2**63), None, generator=generator.manual_seed(seed & (2**63 - 1)))
    return words.view(rows, -(-count // 4))
