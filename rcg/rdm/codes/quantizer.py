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
from rcg.core.kmeans import kmeans, nearest

LLOYD_ROUNDS = 25


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
        left, codes = representations.float() - self.mean.float(), []
        for centres in self.centres.float():
            code = nearest(left, centres)[0]
            left = left - centres[code]
            codes.append(code)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes [B, N], and standard normal noise [B, D] for what they leave open (None: the centres) → float32 [B, D]."""
        positions = torch.arange(len(self.centres), device=codes.device)
        decoded = self.mean.float() + self.centres[positions, codes].float().sum(dim=1)
        return decoded if noise is None else decoded + noise @ self.within.float()

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
            centres, codes = kmeans(left, num_codes, LLOYD_ROUNDS, torch.Generator().manual_seed(n))
            self.centres[n].copy_(centres)
            left = left - centres[codes]
        values, vectors = torch.linalg.eigh(left.double().T @ left.double() / len(x))
        self.within.copy_((values.clamp_min(0).sqrt() * vectors) @ vectors.T)
