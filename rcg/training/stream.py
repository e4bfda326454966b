"""The endless, exactly repeatable order of samples, and batches made ahead of time."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from rcg.core.ahead import read_ahead
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


class StepBatches(Dataset[Batch]):
    """Maps an optimiser step to this process's share of its batch."""

    def __init__(self, dataset: BatchDataset, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.dataset = dataset
        self.stream = SampleStream(len(dataset), seed)
        self.batch_size = batch_size
        self.seed = seed
        self.local = batch_size // world
        self.rank = rank

    def __getitem__(self, step: int) -> Batch:
        indices, epochs = self.stream.take(step * self.batch_size + self.rank * self.local, self.local)
        return self.dataset.batch(indices, sample_seeds(self.seed, epochs, indices))


def load_batches(
    batches: StepBatches, start: int, stop: int, num_workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of steps `start … stop-1`, read ahead by worker processes, or by a thread when there are none."""
    loader: DataLoader[Batch] = DataLoader(
        batches,
        sampler=range(start, stop),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        multiprocessing_context="spawn" if num_workers else None,
    )
    yield from (loader if num_workers else read_ahead(loader, depth=2))


def split_batch(batch: Batch, micro: int) -> list[Batch]:
    """Cut a batch into pieces of at most `micro` samples, as equal as can be."""
    size = len(next(iter(batch.values())))
    pieces = -(-size // micro)
    cuts = [size * i // pieces for i in range(pieces + 1)]
    return [{k: v[a:b] for k, v in batch.items()} for a, b in pairwise(cuts)]


def batch_length(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(next(iter(batch.values())))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to the device, asynchronously where memory is pinned."""
    return {k: v.to(device, non_blocking=True) for k, v in batch.items()}
