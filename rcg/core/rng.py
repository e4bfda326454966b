"""Random seeds that depend on what a sample *is*, never on when or where it is computed."""

from __future__ import annotations

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """Mix non-negative integers (seed, epoch, index, …) into one well-spread 63-bit seed."""
    state = np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0]
    return int(state) >> 1


def sample_seeds(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One uint64 seed for each (epoch, index) pair, vectorised: a splitmix64 hash.

    Args:
        seed: the run's seed.
        epochs, indices: integer arrays of one shape.

    Returns:
        uint64 array of that shape.
    """
    with np.errstate(over="ignore"):
        x = np.uint64(derive_seed(seed)) + epochs.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        x = x + indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def sample_generators(seed: int, start: int, count: int) -> list[torch.Generator]:
    """A CPU generator for each of the images `start … start+count-1` of `seed`.

    Image *i* draws from its own stream, so it is the same image whatever the batch size, process count or order.
    """
    return [torch.Generator().manual_seed(derive_seed(seed, i)) for i in range(start, start + count)]
