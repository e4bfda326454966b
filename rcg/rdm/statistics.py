"""What an RDM learns about representations before it is trained: means, spreads, standardised or not, the noise that hides them."""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD_FLOOR = 1e-3
"""Least standard deviation of an entry, as a share of the typical one: constant entries are not blown up."""


def mean_and_std(representations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation float32 [D] of each entry of representations [N, D], N >= 2."""
    x = representations.double()
    std = x.std(dim=0, unbiased=False)
    floor = SPREAD_FLOOR * std.square().mean().sqrt().clamp_min(1e-12)
    return x.mean(dim=0).float(), std.clamp_min(floor).float()


def is_standardized(representations: Tensor) -> bool:
    """Whether each of [N, D] has mean 0 and (unbiased) standard deviation 1 over its own entries, as RCG's encoders make it."""
    x = representations.double()
    return x.shape[1] > 2 and bool((x.mean(dim=1).abs() < 0.01).all() and ((x.std(dim=1) - 1).abs() < 0.01).all())


def standardized(representations: Tensor) -> Tensor:
    """[B, D] brought to mean 0 and (unbiased) standard deviation 1 over each one's own entries."""
    centred = representations - representations.mean(dim=1, keepdim=True)
    return centred / centred.square().sum(dim=1, keepdim=True).div(centred.shape[1] - 1).sqrt().clamp_min(1e-12)


def half_hidden_noise(representations: Tensor) -> float:
    """The odds σ / (1 − σ) of the noise level at which x = (1 − σ)·z + σ·ε hides half of what there is to know of z.

    z are the representations [N, D], each entry brought to variance 1. From x with the signal-to-noise ratio r = (1 −
    σ)² / σ², the best linear guess leaves λ / (1 + λ·r) of the variance λ of a principal direction open. r is that at
    which these sum up to half of all variance; the odds are r^(−1/2). Independent entries give 1. The more the entries
    go together, the later noise hides them all, and the larger the odds are; the number of entries alone changes nothing.
    """
    mean, std = mean_and_std(representations)
    z = (representations.double().cpu() - mean.double().cpu()) / std.double().cpu()
    variances = torch.linalg.eigvalsh(z.T @ z / len(z)).clamp_min(0)
    low, high = -20.0, 20.0  # of log r; the variance left open falls with r
    for _ in range(60):
        middle = (low + high) / 2
        left = (variances / (1 + variances * torch.tensor(middle, dtype=torch.float64).exp())).sum()
        low, high = (middle, high) if float(left) > float(variances.sum()) / 2 else (low, middle)
    return float(torch.tensor(-low / 2, dtype=torch.float64).exp())
