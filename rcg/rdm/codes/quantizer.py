"""Representations as a row of codes: product quantisation of their principal components (PQ, Jégou et al. 2011; OPQ, Ge et al. 2013).

The components are dealt to N groups, such that the groups have about the same volume, and k-means finds K centres in each.
A code says in which cell of its group a representation lies. Decoding to the centres alone would shrink the data, by what
a cell is wide: at one bit an entry a third of the variance. So what is left within the cells is drawn, too, as normal noise
with the covariance that it has in the group (k-means makes it uncorrelated with the centres): means and covariances of the
decoded representations are those of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError

LLOYD_ROUNDS = 25
CHUNK = 2**25
"""Distances between vectors and centres that are in memory at once."""


class ProductQuantizer(nn.Module):
    """Representations [B, D] ↔ codes [B, N] in [0, K).

    Args:
        dim: D.
        positions: N, a divisor of D.
        num_codes: K.
    """

    def __init__(self, dim: int, positions: int, num_codes: int) -> None:
        super().__init__()
        size = dim // positions
        self.mean: Tensor
        self.rotation: Tensor
        self.centres: Tensor
        self.within: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("rotation", torch.eye(dim))  # columns: components, group after group
        self.register_buffer("centres", torch.zeros(positions, num_codes, size))
        self.register_buffer("within", torch.eye(size).repeat(positions, 1, 1))  # roots of the covariances in the cells

    def encode(self, representations: Tensor) -> Tensor:
        """[B, D] → the nearest centres, int64 [B, N]."""
        return _nearest(self._grouped(representations), self.centres)[0].T

    def decode(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes [B, N], and standard normal noise [B, D] for what they leave open (None: the centres) → float32 [B, D]."""
        positions, _, size = self.centres.shape
        parts = self.centres[torch.arange(positions, device=codes.device), codes]  # [B, N, size]
        if noise is not None:
            parts = parts + torch.einsum("bnd,nde->bne", noise.view(-1, positions, size), self.within)
        return parts.flatten(1) @ self.rotation.T + self.mean

    def _grouped(self, representations: Tensor) -> Tensor:
        """[B, D] → components [N, B, D / N]."""
        rotated = (representations.float() - self.mean) @ self.rotation
        return rotated.view(len(rotated), self.centres.shape[0], -1).transpose(0, 1)

    @torch.no_grad()
    def fit(self, representations: Tensor) -> None:
        """Fit everything to representations [M, D], M >= K; on the CPU, the same for the same data.

        Raises:
            UserError: fewer representations than codes.
        """
        x = representations.detach().cpu().float()
        positions, num_codes, size = self.centres.shape
        if len(x) < num_codes:
            raise UserError(
                f"{num_codes} codes cannot be fitted to {len(x)} representations; set a smaller --num-codes or add data."
            )
        mean = x.double().mean(dim=0)
        centred = x.double() - mean
        variances, components = torch.linalg.eigh(centred.T @ centred / len(x))
        order = deal(variances, positions)
        self.mean.copy_(mean)
        self.rotation.copy_(components[:, order])
        grouped = (centred @ components[:, order]).float().view(len(x), positions, size).transpose(0, 1).contiguous()
        centres, codes = kmeans(grouped, num_codes)
        self.centres.copy_(centres)
        left = (grouped - centres.gather(1, codes[..., None].expand(-1, -1, size))).double()
        values, vectors = torch.linalg.eigh(left.transpose(1, 2) @ left / len(x))
        self.within.copy_((values.clamp_min(0).sqrt()[:, None] * vectors) @ vectors.transpose(1, 2))


def deal(variances: Tensor, groups: int) -> Tensor:
    """Deal components to groups of one size: each, largest first, to the group of least volume that has room (OPQ, §3.2.2).

    Args:
        variances: [D], of the components.
        groups: N, a divisor of D.

    Returns:
        int64 [D], indices of the components, group after group.
    """
    room = len(variances) // groups
    logs = variances.clamp_min(1e-12 * float(variances.max().clamp_min(1e-30))).log()
    logs = logs - logs.min()  # a component more never makes a group smaller
    dealt: list[list[int]] = [[] for _ in range(groups)]
    volumes = [0.0] * groups
    for index in variances.argsort(descending=True, stable=True).tolist():
        group = min((g for g in range(groups) if len(dealt[g]) < room), key=lambda g: (volumes[g], len(dealt[g]), g))
        dealt[group].append(index)
        volumes[group] += float(logs[index])
    return torch.tensor([index for group in dealt for index in group])


def kmeans(vectors: Tensor, clusters: int, rounds: int = LLOYD_ROUNDS) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm in N groups at once, from evenly chosen vectors; deterministic.

    A cluster that nobody belongs to is put where a vector lies worst.

    Args:
        vectors: float [N, M, d] on the CPU, M >= `clusters`.
        clusters: K.
        rounds: Lloyd rounds.

    Returns:
        centres [N, K, d] and the nearest of each vector, int64 [N, M].
    """
    groups, count, size = vectors.shape
    first = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:clusters]
    centres = vectors[:, first].clone()
    for _ in range(rounds):
        nearest, distances = _nearest(vectors, centres)
        sums = torch.zeros_like(centres).scatter_add_(1, nearest[..., None].expand(-1, -1, size), vectors)
        counts = torch.zeros(groups, clusters).scatter_add_(1, nearest, torch.ones(groups, count))
        empty = counts == 0
        worst = distances.topk(clusters, dim=1).indices.gather(1, (empty.cumsum(1) - 1).clamp_min(0))
        lost = vectors.gather(1, worst[..., None].expand(-1, -1, size))
        centres = torch.where(empty[..., None], lost, sums / counts.clamp_min(1)[..., None])
    return centres, _nearest(vectors, centres)[0]


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of centres [N, K, d] of vectors [N, M, d], int64 [N, M], and the squared distances to them [N, M]."""
    squares = centres.square().sum(-1)[:, None]
    rows = max(1, CHUNK // (centres.shape[0] * centres.shape[1]))
    parts = vectors.split(rows, dim=1)
    found = [torch.baddbmm(squares, part, centres.transpose(1, 2), alpha=-2).min(-1) for part in parts]
    nearest = torch.cat([f.indices for f in found], dim=1)
    return nearest, torch.cat([f.values for f in found], dim=1) + vectors.square().sum(-1)
