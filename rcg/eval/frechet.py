"""The Fréchet distance between two sets of vectors, each seen as a Gaussian (Heusel et al., arXiv 1706.08500, eq. 6).

d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½. On representations the paper calls it rep-FD.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rcg.core.errors import UserError

Array = NDArray[np.float64]


def gaussian_stats(features: ArrayLike) -> tuple[Array, Array]:
    """Mean [D] and unbiased covariance [D, D] of vectors [N, D], in float64.

    Raises:
        UserError: fewer than 2 vectors, another shape, or values that are not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise UserError(f"a Fréchet distance needs at least 2 vectors [N, D]; these have shape {x.shape}.")
    if not np.isfinite(x).all():
        raise UserError("a Fréchet distance needs finite vectors; these hold NaN or infinity.")
    mu = x.mean(axis=0)
    centred = x - mu
    return mu, centred.T @ centred / (x.shape[0] - 1)


def _symmetric_sqrt(sigma: Array) -> Array:
    """The positive square root of a covariance; eigenvalues that are rounding noise count as the zeros they stand for."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    noise = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    if values[0] < -max(1e3 * noise, 1e-12 * abs(values[-1]) + np.finfo(np.float64).tiny):
        raise UserError("a Fréchet distance needs covariance matrices; one of these has negative eigenvalues.")
    root = np.sqrt(np.where(values > noise, values, 0.0))
    return (vectors * root) @ vectors.T


def frechet_distance_from_stats(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """The squared 2-Wasserstein distance d² of two Gaussians (the "FID" of their features), never below 0.

    tr (Σ₁^½ Σ₂ Σ₁^½)^½ is the sum of the singular values of Σ₂^½ Σ₁^½. Taking these, instead of roots of the
    eigenvalues of the product, keeps full precision when a covariance is rank-deficient (fewer vectors than entries).

    Args:
        mu1, mu2: means [D].
        sigma1, sigma2: covariances [D, D].

    Raises:
        UserError: shapes that do not fit, or matrices that are no covariances.
    """
    m1, m2 = np.asarray(mu1, dtype=np.float64), np.asarray(mu2, dtype=np.float64)
    s1, s2 = np.asarray(sigma1, dtype=np.float64), np.asarray(sigma2, dtype=np.float64)
    d = m1.shape[0] if m1.ndim == 1 else -1
    if m2.shape != (d,) or s1.shape != (d, d) or s2.shape != (d, d):
        raise UserError(
            f"statistics of different sizes cannot be compared: means {m1.shape} and {m2.shape}, "
            f"covariances {s1.shape} and {s2.shape}."
        )
    if not all(np.isfinite(a).all() for a in (m1, m2, s1, s2)):
        raise UserError("a Fréchet distance needs finite statistics; these hold NaN or infinity.")
    cross = np.linalg.svd(_symmetric_sqrt(s2) @ _symmetric_sqrt(s1), compute_uv=False).sum()
    difference = m1 - m2
    distance = float(difference @ difference + np.trace(s1) + np.trace(s2) - 2.0 * cross)
    return max(distance, 0.0)


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """d² between the Gaussians fitted to two sets of vectors.

    It is biased upwards for few vectors: compare only distances taken at equal N, next to the floor (real against real).

    Args:
        a, b: [N, D] and [M, D].

    Raises:
        UserError: fewer than 2 vectors in a set, different D, or values that are not finite.
    """
    return frechet_distance_from_stats(*gaussian_stats(a), *gaussian_stats(b))
