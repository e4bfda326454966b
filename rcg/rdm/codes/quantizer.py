"""Representations as a row of codes, coarse to fine: residual quantisation (Juang and Gray 1982; Chen et al. 2010).

k-means finds K centres of the representations; what is left of each to its nearest centre is quantised in the same way, and so
on, N times. The first code says what kind of image it is, the last ones hardly matter. Decoding to the centres alone would
shrink the data by what is left after the last code; so that is drawn, too, as normal noise with the covariance that it has
(k-means makes it uncorrelated with the centres): mean and covariance of the decoded representations are those of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError

LLOYD_ROUNDS = 25
CHUNK = 2**25
"""Distances between vectors and centres that are in memory at once."""


class ResidualQuantizer(nn.Module):
    """Representations [B, D] ↔ codes [B, N] in [0, K), coarse to fine.

    Args:
        dim: D.
        positions: N.
        num_codes: K.
    """

    def __init__(self, dim: int, positions: int, num_codes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.centres: Tensor
        self.within: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("centres", torch.zeros(positions, num_codes, dim))
        self.register_buffer("within", torch.eye(dim))  # root of the covariance of what is left

    def encode(self, representations: Tensor) -> Tensor:
        """[B, D] → codes int64 [B, N]: the nearest centre, then the nearest to what is left of that, …"""
        left, codes = representations.float() - self.mean, []
        for centres in self.centres:
            code = _nearest(left, centres)[0]
            left = left - centres[code]
            codes.append(code)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes [B, N], and standard normal noise [B, D] for what they leave open (None: the centres) → float32 [B, D]."""
        positions = torch.arange(len(self.centres), device=codes.device)
        decoded = self.mean + self.centres[positions, codes].sum(dim=1)
        return decoded if noise is None else decoded + noise @ self.within

    @torch.no_grad()
    def fit(self, representations: Tensor) -> None:
        """Fit everything to representations [M, D], M >= K; on the CPU, the same for the same data.

        Raises:
            UserError: fewer representations than codes.
        """
        x = representations.detach().cpu().float()
        positions, num_codes, _ = self.centres.shape
        if len(x) < num_codes:
            raise UserError(
                f"{num_codes} codes cannot be fitted to {len(x)} representations; set a smaller --num-codes or add data."
            )
        self.mean.copy_(x.double().mean(dim=0))
        left = x - self.mean.cpu()
        for n in range(positions):
            centres, codes = kmeans(left, num_codes)
            self.centres[n].copy_(centres)
            left = left - centres[codes]
        values, vectors = torch.linalg.eigh(left.double().T @ left.double() / len(x))
        self.within.copy_((values.clamp_min(0).sqrt() * vectors) @ vectors.T)


def kmeans(vectors: Tensor, clusters: int, rounds: int = LLOYD_ROUNDS) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm, from vectors taken by chance but always the same; deterministic.

    A cluster that nobody belongs to is put where a vector lies worst.

    Args:
        vectors: float [M, d] on the CPU, M >= `clusters`.
        clusters: K.
        rounds: Lloyd rounds.

    Returns:
        centres [K, d] and the nearest of each vector, int64 [M].
    """
    count = len(vectors)
    centres = vectors[torch.randperm(count, generator=torch.Generator().manual_seed(0))[:clusters]].clone()
    for _ in range(rounds):
        nearest, distances = _nearest(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        counts = nearest.bincount(minlength=clusters)
        empty = counts == 0
        worst = distances.topk(clusters).indices[(empty.cumsum(0) - 1).clamp_min(0)]
        centres = torch.where(empty[:, None], vectors[worst], sums / counts.clamp_min(1)[:, None])
    return centres, _nearest(vectors, centres)[0]


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of centres [K, d] of vectors [M, d], int64 [M], and the squared distances to them [M]."""
    squares = centres.square().sum(dim=1)
    parts = [
        torch.addmm(squares, part, centres.T, alpha=-2).min(dim=1)
        for part in vectors.split(max(1, CHUNK // len(centres)))
    ]
    nearest = torch.cat([part.indices for part in parts])
    return nearest, torch.cat([part.values for part in parts]) + vectors.square().sum(dim=1)
