"""Nearest neighbours of some rows among a stream of many, exactly, in memory that does not grow with the stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rcg.core.errors import UserError

CHUNK = 512
"""Rows of the stream that are compared at once: always the same, so that the portions they come in do not matter."""
PAIRS = 4096
"""Pairs whose differences are held at once."""


@dataclass(frozen=True)
class Neighbors:
    """The nearest rows of a stream to each of Q others, the nearest first.

    Attributes:
        distances: float64 [Q, k], Euclidean; exactly 0 for equal rows.
        numbers: int64 [Q, k], their places in the stream, from 0.
    """

    distances: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def split(self, count: int) -> tuple[Neighbors, Neighbors]:
        """Those of the first `count` rows, and of the others."""
        first = Neighbors(self.distances[:count], self.numbers[:count])
        return first, Neighbors(self.distances[count:], self.numbers[count:])


class Nearest:
    """Looks for the `k` nearest rows of a stream, computing where the rows are, in float64.

    Candidates are found by the expanded square, |q|² + |r|² - 2qr; those that are kept are computed anew from the difference,
    because the expanded square of two nearly equal rows has lost its digits. Memory: O(Q (D + k + 512)).

    Args:
        queries: [Q, D], the rows whose neighbours are sought.
        k: neighbours of each.
    """

    def __init__(self, queries: np.ndarray, k: int = 1) -> None:
        self.k = k
        self.seen = 0  # rows taken in, of this process
        self._queries = torch.from_numpy(queries).double()
        self._centre = self._queries.mean(dim=0)  # distances stay as they are, the digits of squares are spared
        self._queries = self._queries - self._centre
        self._lengths = self._queries.square().sum(dim=1)
        self._squares = torch.full((len(queries), k), torch.inf, dtype=torch.float64)
        self._numbers = torch.full((len(queries), k), -1, dtype=torch.int64)
        self._waiting: list[torch.Tensor] = []
        self._start = 0  # number of the first row that waits

    def add(self, start: int, rows: torch.Tensor) -> None:
        """Take in rows [B, D], the rows number `start`, `start` + 1, … of the stream; each call follows the one before."""
        if not self._waiting:
            self._start = start
        self._waiting.append(rows.detach())
        self.seen += len(rows)
        if sum(map(len, self._waiting)) >= CHUNK:
            parts = list(torch.cat(self._waiting).split(CHUNK))
            self._waiting = [parts.pop()] if len(parts[-1]) < CHUNK else []
            for part in parts:
                self._take(part)

    def _move(self, device: torch.device) -> None:
        if self._queries.device != device:
            for name in ("_queries", "_centre", "_lengths", "_squares", "_numbers"):
                setattr(self, name, getattr(self, name).to(device))

    def _take(self, rows: torch.Tensor) -> None:
        self._move(rows.device)
        centred = rows.double() - self._centre
        found = self._lengths[:, None] + centred.square().sum(dim=1) - 2 * self._queries @ centred.T
        slack = 1e-12 * (self._lengths[:, None] + centred.square().sum(dim=1).max())
        near = found.topk(min(self.k, len(rows)), dim=1, largest=False).values
        most = int((found <= near[:, -1:] + slack).sum(dim=1).max())  # with all that are as near as the k-th
        places = found.topk(most, dim=1, largest=False).indices.sort(dim=1).values
        closer = found.gather(1, places) <= self._squares[:, -1:] + slack
        squares = torch.full(places.shape, torch.inf, dtype=torch.float64, device=rows.device)
        which, column = closer.nonzero(as_tuple=True)
        for part in torch.arange(len(which), device=rows.device).split(PAIRS):
            q, c = which[part], column[part]
            squares[q, c] = (self._queries[q] - centred[places[q, c]]).square().sum(dim=1)
        self._keep(squares, places + self._start)
        self._start += len(rows)

    def _keep(self, squares: torch.Tensor, numbers: torch.Tensor) -> None:
        squares, order = torch.cat([self._squares, squares], dim=1).sort(dim=1, stable=True)
        self._squares = squares[:, : self.k].contiguous()
        self._numbers = torch.cat([self._numbers, numbers], dim=1).gather(1, order)[:, : self.k].contiguous()

    def flush(self) -> None:
        """Take in what waits for its chunk to be full, and let go of the queries; after the last row."""
        if self._waiting:
            rows, self._waiting = torch.cat(self._waiting), []
            if len(rows):
                self._take(rows)
        self._move(torch.device("cpu"))
        self._queries = self._lengths = torch.empty(0)

    def merge(self, other: Nearest) -> None:
        """Take in what another one found among later rows of the stream, for the same queries (both flushed)."""
        self._keep(other._squares, other._numbers)
        self.seen += other.seen

    def neighbors(self) -> Neighbors:
        """What was found (flushed): of each query `k`, or as many as there were rows.

        Raises:
            UserError: there were no rows.
        """
        k = min(self.k, self.seen)
        if not k:
            raise UserError("There are no images among which neighbours could be sought.")
        return Neighbors(self._squares[:, :k].sqrt().numpy(), self._numbers[:, :k].numpy())
