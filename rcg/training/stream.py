"""The endless, exactly repeatable order of samples, and batches made ahead of time."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Generator, Iterable
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from rcg.core.ahead import read_ahead
from rcg.core.errors import UserError
from rcg.core.rng import derive_seed, sample_seeds
from rcg.training.stage import Batch, BatchDataset


class SampleStream:
    """Permutation after permutation of `size` samples, one an epoch; position *p* is the same in every run.

    A batch may straddle two epochs, so no sample is ever dropped and small sets work with large batches.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            generator = np.random.default_rng(derive_seed(self.seed, 2, epoch))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = generator.permutation(self.size)
        return self._orders[epoch]

    def take(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample indices and epochs (int64 [count] each) of the positions `start … start+count-1`."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs = positions // self.size
        indices = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            where = epochs == epoch
            indices[where] = self._order(int(epoch))[positions[where] % self.size]
        return indices, epochs


SEEDS = "sample seeds"
"""Under this name a batch holds the seeds of its samples, int64 [B] with the bits of uint64."""


class StepBatches(Dataset[Batch | UserError]):
    """Maps an optimiser step to this process's share of its batch: the rows `start … stop-1`, about as many for each."""

    def __init__(self, dataset: BatchDataset, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.dataset = dataset
        self.stream = SampleStream(len(dataset), seed)
        self.batch_size = batch_size
        self.seed = seed
        self.start, self.stop = batch_size * rank // world, batch_size * (rank + 1) // world

    def __getitem__(self, step: int) -> Batch | UserError:
        indices, epochs = self.stream.take(step * self.batch_size + self.start, self.stop - self.start)
        seeds = sample_seeds(self.seed, epochs, indices)
        try:
            return {**self.dataset.batch(indices, seeds), SEEDS: torch.from_numpy(seeds.view(np.int64))}
        except UserError as e:  # raised, a worker would send it with its traceback as the message
            return e


def load_batches(
    batches: StepBatches, start: int, stop: int, num_workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of steps `start … stop-1`, read ahead by worker processes, or by a thread when there are none.

    Raises:
        UserError: of the data.
    """
    if start >= stop:  # workers would take seconds to start, and to end
        return
    closing = get_context("spawn").RawValue(ctypes.c_bool) if num_workers else ctypes.c_bool()
    loader: DataLoader[Batch | UserError] = DataLoader(
        batches,
        sampler=range(start, stop),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        multiprocessing_context="spawn" if num_workers else None,
        worker_init_fn=partial(_leave_signals, closing),
    )
    items = iter(loader) if num_workers else read_ahead(loader, depth=2)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    finally:
        closing.value = True
        del items  # which ends the workers, or the thread


def _leave_signals(closing: ctypes.c_bool, _: int) -> None:
    """In a worker: Ctrl-C and SIGTERM, which reach a whole group of processes, are for the training, which needs its data until
    it has stopped by itself; SIGTERM ends the worker from when it is `closing` on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.value else None)


def cut_rows(start: int, stop: int, most: int, borders: Iterable[int] = (), least: int = 1) -> list[range]:
    """Cut the rows `start … stop-1` of a batch into pieces of at most `most`, as equal as can be, none across a border.

    Where that makes fewer than `least` pieces, the longest are halved as long as there are rows.
    """
    ends = [start, *(b for b in borders if start < b < stop), stop]
    found: list[range] = []
    for first, last in pairwise(ends):
        pieces = -(-(last - first) // most)
        cuts = [first + (last - first) * i // pieces for i in range(pieces + 1)]
        found += [range(a, b) for a, b in pairwise(cuts)]
    while len(found) < min(least, stop - start):
        i = max(range(len(found)), key=lambda j: len(found[j]))
        rows, half = found[i], len(found[i]) // 2
        found[i : i + 1] = [rows[:half], rows[half:]]
    return found


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device, asynchronously where memory is pinned."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}
