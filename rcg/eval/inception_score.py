"""The Inception Score of a stream (Salimans et al. 2016): exp E[KL(p(y|x) || p(y))], mean and deviation over splits.

Equal to torch-fidelity's with the same seed; instead of all class probabilities it keeps a sum for each split.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from rcg.core.errors import UserError

SPLITS = 10


class InceptionScore:
    """Takes logits in any portions.

    Args:
        total: images of the whole stream: splits are of equal size, and who belongs where is drawn beforehand.
        seed: of that draw.
    """

    def __init__(self, total: int, seed: int = 0) -> None:
        self.splits = SPLITS if total >= 10 * SPLITS else 1
        order = np.random.RandomState(seed % 2**32).permutation(total)
        ends = np.arange(1, self.splits + 1) * total // self.splits
        self._split_of = torch.empty(total, dtype=torch.int64)
        self._split_of[torch.from_numpy(order)] = torch.from_numpy(
            np.searchsorted(ends, np.arange(total), side="right")
        )
        self._counts = torch.zeros(self.splits, dtype=torch.float64)
        self._negentropy = torch.zeros(self.splits, dtype=torch.float64)  # Σ_x Σ_y p log p
        self._marginal: torch.Tensor | None = None  # Σ_x p

    def like(self) -> InceptionScore:
        """Another one of the same stream, which has seen nothing yet."""
        found = copy.copy(self)
        found._counts, found._negentropy = torch.zeros_like(self._counts), torch.zeros_like(self._negentropy)
        found._marginal = None
        return found

    def flush(self) -> None:
        """Let go of who belongs where; after the last image."""
        self._split_of = torch.empty(0, dtype=torch.int64)

    def add(self, start: int, logits: torch.Tensor) -> None:
        """Take in logits [B, C] of the images number `start`, `start` + 1, …"""
        log_p = logits.detach().double().cpu().log_softmax(dim=1)
        p = log_p.exp()
        split = self._split_of[start : start + len(p)]
        if self._marginal is None:
            self._marginal = torch.zeros(self.splits, p.shape[1], dtype=torch.float64)
        self._marginal.index_add_(0, split, p)
        self._negentropy.index_add_(0, split, (p * log_p).sum(dim=1))
        self._counts.index_add_(0, split, torch.ones(len(p), dtype=torch.float64))

    def merge(self, other: InceptionScore) -> None:
        """Take in what another one saw of the same stream."""
        if other._marginal is not None:
            self._marginal = other._marginal if self._marginal is None else self._marginal + other._marginal
        self._counts += other._counts
        self._negentropy += other._negentropy

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits.

        Raises:
            UserError: fewer than 2 images.
        """
        if self._marginal is None or self._counts.sum() < 2:
            raise UserError("the Inception Score needs at least 2 generated images.")
        q = self._marginal / self._counts[:, None]
        divergence = self._negentropy / self._counts - torch.special.xlogy(q, q).sum(dim=1)
        scores = divergence.exp().numpy()
        return float(scores.mean()), float(scores.std())
