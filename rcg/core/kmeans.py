"""k-means on any device, on a CPU with the same result each time: scikit-learn's sums differ in last bits from run to run."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**25
"""Distances between vectors and centres that are in memory at once."""


def kmeans(
    vectors: Tensor, clusters: int, rounds: int = 10, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster vectors: k-means++ seeding (Arthur and Vassilvitskii, 2007), then Lloyd's rounds.

    A cluster that nobody belongs to is put where a vector lies worst.

    Args:
        vectors: float32 [M, D], M >= 1.
        clusters: K. With fewer distinct vectors than clusters some centres coincide.
        rounds: Lloyd rounds.
        generator: of the seeding, on the CPU; None: torch's global one.

    Returns:
        centres float32 [K, D] and the nearest of each vector, int64 [M].
    """
    draws = torch.rand(clusters, dtype=torch.float64, generator=generator)
    centres = torch.empty(clusters, vectors.shape[1], device=vectors.device)
    centres[0] = vectors[int(draws[0] * len(vectors))]
    distance = (vectors - centres[0]).square().sum(1)
    for k in range(1, clusters):
        total = distance.cumsum(0, dtype=torch.float64)
        index = torch.searchsorted(total, draws[k].to(total) * total[-1], right=True).clamp(max=len(vectors) - 1)
        centres[k] = vectors[index]
        distance = torch.minimum(distance, (vectors - centres[k]).square().sum(1))
    for _ in range(rounds):
        ids, distances = nearest(vectors, centres)
        counts = ids.bincount(minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, ids, vectors)
        empty = counts == 0
        worst = distances.topk(min(clusters, len(vectors))).indices
        lost = worst[(empty.cumsum(0) - 1).clamp(0, len(worst) - 1)]
        centres = torch.where(empty[:, None], vectors[lost], sums / counts.clamp_min(1)[:, None])
    return centres, nearest(vectors, centres)[0]


def nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of centres [K, D] of vectors [M, D], int64 [M], and the squared distances to them [M]."""
    middle = centres.mean(dim=0)  # far from 0, squares would leave no digits for differences
    centres = centres - middle
    squares = centres.square().sum(dim=1)
    ids, distances = list[Tensor](), list[Tensor]()
    for part in vectors.split(max(1, CHUNK // len(centres))):
        part = part - middle
        least = torch.addmm(squares, part, centres.T, alpha=-2).min(dim=1)
        ids.append(least.indices)
        distances.append(least.values + part.square().sum(dim=1))
    return torch.cat(ids), torch.cat(distances)
