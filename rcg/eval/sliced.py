"""MIND, the Monge Inception Distance (Berthet et al., arXiv 2605.06797): a sliced Wasserstein distance of features."""

from __future__ import annotations

import numpy as np
import torch

from rcg.eval.kernels import Found

PROJECTIONS = 1000
AT_ONCE = 100  # projections sorted together


def monge_inception_distance(generated: np.ndarray, reference: np.ndarray, seed: int) -> Found:
    """α/(nM) Σᵢ Σⱼ |sort(X uᵢ)ⱼ - sort(Y uᵢ)ⱼ|² over M = 1000 random directions u of length 1, with α = 3 D.

    Sets of different size: a random part of the larger one is taken. Directions and part are those of torch-fidelity's
    program at the same seed, in float32 as there.

    Args:
        generated, reference: features [N, D], [M, D].
        seed: of the directions, and of the part.
    """
    x, y = torch.from_numpy(generated).float(), torch.from_numpy(reference).float()
    n, dim = min(len(x), len(y)), x.shape[1]
    rng = torch.Generator().manual_seed(seed)
    if len(x) > n:
        x = x[torch.randperm(len(x), generator=rng)[:n]]
    if len(y) > n:
        y = y[torch.randperm(len(y), generator=rng)[:n]]
    directions = torch.randn(PROJECTIONS, dim, generator=rng)
    directions /= directions.norm(dim=1, keepdim=True)
    total = 0.0
    for some in directions.split(AT_ONCE):
        difference = (x @ some.T).sort(dim=0).values - (y @ some.T).sort(dim=0).values
        total += float(difference.double().square().sum())
    return {"mind": 3 * dim * total / (n * PROJECTIONS)}, {"projections": PROJECTIONS, "images": n}
