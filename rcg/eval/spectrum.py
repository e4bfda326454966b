"""How a set of representations fills its space: dimensions that it uses, dimensions that are dead, and copies."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from rcg.core.errors import UserError

DEAD = 0.01
"""A dimension whose standard deviation is below this share of the usual one carries nothing."""
COPY = 0.01
"""Two vectors are copies if their cosine distance is below this share of that of two random ones."""
ROWS = 1024


def _checked(vectors: np.ndarray | torch.Tensor) -> torch.Tensor:
    x = torch.as_tensor(vectors).double()
    if x.ndim != 2 or len(x) < 2 or not bool(torch.isfinite(x).all()):
        raise UserError(f"at least 2 finite vectors [N, D] are needed; these have shape {list(x.shape)}.")
    return x


def rank_me(vectors: np.ndarray | torch.Tensor) -> float:
    """RankMe (Garrido et al., arXiv 2210.02885, eq. 1): exp of the entropy of the singular values, scaled to sum 1.

    From 1 (all on one line through the origin) to min(N, D).

    Args:
        vectors: [N, D]; not centred, as in the paper.

    Raises:
        UserError: fewer than 2 vectors, or values that are not finite.
    """
    values = torch.linalg.svdvals(_checked(vectors))
    shares = values / values.sum().clamp_min(1e-300)
    return float((-torch.special.xlogy(shares, shares)).sum().exp())


def dead_dimensions(vectors: np.ndarray | torch.Tensor) -> int:
    """How many of the D entries hardly differ between vectors [N, D]: below 1 % of the root mean square deviation.

    Raises:
        UserError: fewer than 2 vectors, or values that are not finite.
    """
    x = _checked(vectors)
    deviations = x.std(dim=0)
    usual = deviations.square().mean().sqrt()
    return int((deviations <= DEAD * usual).sum())


def find_copies(vectors: np.ndarray | torch.Tensor) -> np.ndarray:
    """For each of N vectors the first earlier one that it is a copy of, else -1: int64 [N].

    A copy has a cosine distance below 1 % of the mean one over all pairs; of vectors that all point one way every one is.

    Args:
        vectors: [N, D].

    Raises:
        UserError: fewer than 2 vectors, or values that are not finite.
    """
    x = F.normalize(_checked(vectors), dim=1)
    total = x.sum(dim=0)
    count = len(x)
    mean = float((count * count - total @ total) / (count * (count - 1)))  # of 1 - cosine over pairs, each x·x being 1
    limit = max(COPY * mean, 1e-9)
    found = np.full(count, -1, np.int64)
    for start in range(0, count, ROWS):
        rows = x[start : start + ROWS]
        close = (1 - rows @ x[: start + len(rows)].T) <= limit
        close &= torch.arange(start + len(rows))[None] < (start + torch.arange(len(rows)))[:, None]
        first = torch.where(close.any(dim=1), close.int().argmax(dim=1), -1)
        found[start : start + len(rows)] = first.numpy()
    return found
