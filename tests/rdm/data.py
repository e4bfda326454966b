"""Small data sets of representations."""

from __future__ import annotations

import numpy as np
import torch

from rcg.training.stage import Batch


class Vectors:
    """A data set of given representations."""

    def __init__(self, vectors: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.vectors, self.labels, self.fingerprint = vectors.astype(np.float32), labels, "vectors"

    def __len__(self) -> int:
        return len(self.vectors)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        batch = {"representations": torch.from_numpy(self.vectors[indices]), "indices": torch.from_numpy(indices)}
        return batch if self.labels is None else {**batch, "labels": torch.from_numpy(self.labels[indices])}


def modes(count: int, dim: int = 8, seed: int = 0) -> Vectors:
    """Three separate clusters, labelled."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(3, dim))
    labels = rng.integers(3, size=count)
    return Vectors(centres[labels] + 0.2 * rng.normal(size=(count, dim)), labels)
