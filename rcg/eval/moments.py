"""What is kept of a stream of features: mean and covariance in constant memory, and a sample of bounded size."""

from __future__ import annotations

import numpy as np
import torch

from rcg.core.errors import UserError
from rcg.core.rng import sample_seeds

CHUNK = 512
"""Rows that are added at once: always the same, so that the sums do not depend on the batches that rows came in."""


class Moments:
    """Mean and covariance of rows that arrive in any portions, in float64 (Chan, Golub and LeVeque 1979, eq. 2.1).

    The bits depend on the rows and their order alone, not on the portions. Merged ones differ by rounding (relative 1e-12).
    The sums are taken where the rows are, and brought to the CPU by `flush`.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter: torch.Tensor | None = None  # Σ (x - mean)(x - mean)ᵀ
        self._waiting: list[torch.Tensor] = []
        self._rows = 0

    @property
    def pending(self) -> int:
        """Rows that have been taken in, those that wait for their chunk among them."""
        return self.count + self._rows

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows [B, D]."""
        self._waiting.append(rows.detach().double())
        self._rows += len(rows)
        if self._rows >= CHUNK:
            parts = list(torch.cat(self._waiting).split(CHUNK))
            self._waiting = [parts.pop()] if len(parts[-1]) < CHUNK else []
            self._rows = sum(map(len, self._waiting))
            for part in parts:
                self._take(part)

    def _take(self, rows: torch.Tensor) -> None:
        mean = rows.mean(dim=0)
        centred = rows - mean
        self._join(len(rows), mean, centred.T @ centred)

    def _join(self, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        total = self.count + count
        difference = mean - self._mean.to(mean.device)
        if self._scatter is None:
            self._scatter = scatter
        else:
            self._scatter += scatter
            self._scatter.addr_(difference, difference, alpha=self.count * count / total)
        self._mean = self._mean.to(mean.device) + difference * (count / total)
        self.count = total

    def flush(self) -> None:
        """Take in what waits for its chunk to be full; after the last row."""
        if self._waiting:
            waiting, self._waiting, self._rows = torch.cat(self._waiting), [], 0
            self._take(waiting)
        if self._scatter is not None:
            self._mean, self._scatter = self._mean.cpu(), self._scatter.cpu()

    def merge(self, other: Moments) -> None:
        """Take in all rows of another one (both flushed)."""
        if other._scatter is not None:
            self._join(other.count, other._mean, other._scatter)

    def stats(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and unbiased covariance [D, D], float64 (flushed).

        Raises:
            UserError: fewer than 2 rows have no covariance.
        """
        if self.count < 2 or self._scatter is None:
            raise UserError(f"Statistics need at least 2 images; there is {self.count}.")
        return self._mean.numpy(), (self._scatter / (self.count - 1)).numpy()


class RowSample:
    """At most `size` rows of a stream, each equally likely to be kept, in the stream's order.

    Row i has a random number by the seed and i; the rows with the smallest ones are kept. So the sample depends neither
    on the portions that rows come in nor on who saw them, and is all of them where there are no more than `size`.

    Args:
        size: rows to keep at most.
        seed: of the choice.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # numbers of rows, rows

    def add(self, start: int, rows: np.ndarray) -> None:
        """Take in rows [B, D], the rows number `start`, `start` + 1, … of the stream."""
        self._parts.append((np.arange(start, start + len(rows)), rows))
        if sum(len(numbers) for numbers, _ in self._parts) > 2 * self.size:
            self._prune()

    def _prune(self) -> None:
        if not self._parts:
            return
        numbers = np.concatenate([numbers for numbers, _ in self._parts])
        if len(numbers) > self.size:
            order = np.argsort(sample_seeds(self.seed, np.zeros_like(numbers), numbers), kind="stable")
            kept = np.sort(order[: self.size])
        else:
            kept = np.arange(len(numbers))
        rows = np.concatenate([rows for _, rows in self._parts])[kept]
        self._parts = [(numbers[kept], rows)]

    def merge(self, other: RowSample) -> None:
        """Take in what another one kept of other rows of the stream."""
        self._parts += other._parts
        self._prune()

    def rows(self) -> np.ndarray:
        """The rows that were kept, [n, D], in order."""
        self._prune()
        ((numbers, rows),) = self._parts
        return rows[np.argsort(numbers)]

    def numbers(self) -> np.ndarray:
        """The numbers of the rows that were kept, int64 [n], in order."""
        self._prune()
        ((numbers, _),) = self._parts
        return np.sort(numbers)
