"""Keeping samples out of training, always the same ones."""

from __future__ import annotations

import hashlib

import numpy as np

from rcg.core.rng import derive_seed
from rcg.training.stage import Batch, BatchDataset


class Subset:
    """Some samples of a `BatchDataset`, as one.

    Args:
        dataset: the whole.
        indices: int64 [N], which samples.
    """

    def __init__(self, dataset: BatchDataset, indices: np.ndarray) -> None:
        self.dataset = dataset
        self.indices = indices.astype(np.int64)
        digest = hashlib.sha256(dataset.fingerprint.encode() + self.indices.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        """Samples `indices` of the subset; see `BatchDataset.batch`."""
        return self.dataset.batch(self.indices[indices], seeds)


def hold_out(size: int, count: int, most: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Split `size` samples at random, but always alike, into those to train on and `count` to judge by.

    Args:
        size: of the data.
        count: to judge by; fewer where the data is small.
        most: largest share of the data to judge by.

    Returns:
        two sorted int64 arrays of indices, to train on and to judge by.
    """
    count = min(count, int(size * most))
    order = np.random.default_rng(derive_seed(size, 5)).permutation(size)
    return np.sort(order[count:]), np.sort(order[:count])
