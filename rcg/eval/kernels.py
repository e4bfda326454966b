"""Metrics by kernels: KID, CMMD and the Vendi score. Kernel matrices are made a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg.core.errors import UserError

Found = tuple[dict[str, float], dict[str, Any]]
"""Figures by name, and how they were computed."""
KID_SUBSET_SIZE = 1000
KID_SUBSETS = 100
KID_LEAST = 50  # samples in a subset below which KID's variance says nothing
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
ROWS = 1000  # of a kernel matrix held at once


def _blocks(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(x), ROWS):
        rows = slice(start, min(start + ROWS, len(x)))
        yield rows, kernel(x[rows], y)


def kernel_inception_distance(generated: np.ndarray, reference: np.ndarray, seed: int) -> Found:
    """Unbiased squared MMD with the cubic kernel (x·y/D + 1)³, mean and spread over subsets (Bińkowski et al. 2018).

    The subsets are torch-fidelity's, and so is the value; but each kernel is computed once, however many subsets hold it.

    Args:
        generated, reference: features [N, D], [M, D]. Subsets hold 1000 of each, or all of the smaller set if it is less.
        seed: of the subsets.

    Raises:
        UserError: fewer than 50 images on a side.
    """
    size = min(KID_SUBSET_SIZE, len(generated), len(reference))
    if size < KID_LEAST:
        raise UserError(f"KID needs at least {KID_LEAST} images on each side; there are only {size} on one.")
    rng = np.random.RandomState(seed % 2**32)
    x, y = torch.from_numpy(generated).double(), torch.from_numpy(reference).double()
    in_x, in_y = (torch.zeros(KID_SUBSETS, len(side), dtype=torch.float64) for side in (x, y))
    for i in range(KID_SUBSETS):
        in_x[i, torch.from_numpy(rng.choice(len(x), size, replace=False))] = 1
        in_y[i, torch.from_numpy(rng.choice(len(y), size, replace=False))] = 1

    def cubic(a: Tensor, b: Tensor) -> Tensor:  # in float64: small features make a kernel near 1
        return (a @ b.T / a.shape[1]).add_(1).pow_(3)

    def pairs(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor) -> Tensor:
        """The sum of each subset's kernels, [subsets]."""
        return sum(
            (((in_a[:, rows] @ block) * in_b).sum(dim=1) for rows, block in _blocks(a, b, cubic)),
            start=torch.zeros(KID_SUBSETS, dtype=torch.float64),
        )

    def within(a: Tensor, in_a: Tensor) -> Tensor:
        diagonal = ((a * a).sum(dim=1) / a.shape[1] + 1) ** 3
        return pairs(a, a, in_a, in_a) - in_a @ diagonal

    found = (within(x, in_x) + within(y, in_y)) / (size * (size - 1)) - 2 * pairs(x, y, in_x, in_y) / size**2
    values = {"kid": float(found.mean()), "kid_std": float(found.std(correction=0))}
    return values, {"subsets": KID_SUBSETS, "subset_size": size}


def clip_mmd(generated: np.ndarray, reference: np.ndarray) -> Found:
    """CMMD (Jayasumana et al., arXiv 2401.09603): 1000 times the squared MMD of CLIP embeddings, Gaussian kernel, σ = 10.

    The estimate is that of the paper's program: biased, all pairs counted.

    Args:
        generated, reference: embeddings [N, D], [M, D] of length 1.
    """
    x, y = torch.from_numpy(generated).double(), torch.from_numpy(reference).double()

    def gaussian(a: Tensor, b: Tensor) -> Tensor:
        squares = (a * a).sum(dim=1)[:, None] + (b * b).sum(dim=1) - 2 * a @ b.T
        return (squares / (-2 * CMMD_SIGMA**2)).exp_()

    def mean(a: Tensor, b: Tensor) -> float:
        return sum(float(block.sum()) for _, block in _blocks(a, b, gaussian)) / (len(a) * len(b))

    value = CMMD_SCALE * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    return {"cmmd": value}, {"sigma": CMMD_SIGMA, "scale": CMMD_SCALE}


def vendi_score(features: np.ndarray) -> float:
    """How many different images there are (Friedman and Dieng, arXiv 2210.02410): exp of the entropy of the eigenvalues
    of the cosine similarities divided by N; from 1 (all alike) to min(N, D).

    It looks at no reference, and grows with N: compare it at equal counts, next to that of real images.

    Args:
        features: [N, D].

    Raises:
        UserError: a feature that is all zeros, which has no direction.
    """
    x = torch.from_numpy(features).double()
    lengths = x.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise UserError("the Vendi score needs features that are not zero.")
    x = x / lengths
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the same eigenvalues, but for zeros
    values = torch.linalg.eigvalsh(gram / len(x)).clamp_min(0)
    return float((-torch.special.xlogy(values, values).sum()).exp())
