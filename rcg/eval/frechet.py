"""The Fréchet distance between two sets of vectors, each seen as a Gaussian (Heusel et al., arXiv 1706.08500, eq. 6).

d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½. On representations the paper calls it rep-FD.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rcg.core.errors import UserError

Array = NDArray[np.float64]
INFINITY_POINTS = 15
INFINITY_LEAST = 2.5
"""Smallest set of an extrapolation, in vectors for each dimension (the paper: 5,000 for 2,048)."""


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


def _root(sigma: Array) -> Array:
    """R [D, rank] with R Rᵀ = Σ; eigenvalues that are rounding noise count as the zeros they stand for."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    noise = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    rounding = max(values[-1], 0.0) * len(values) * np.finfo(np.float32).eps  # statistics may have been stored so
    if values[0] < -max(rounding, np.finfo(np.float64).tiny):
        raise UserError("a Fréchet distance needs covariance matrices; one of these has negative eigenvalues.")
    kept = values > noise
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root


def frechet_distance_from_stats(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """d² between two Gaussians (what the field calls the "FID" of their features), never below 0.

    tr (Σ₁^½ Σ₂ Σ₁^½)^½ is the sum of the singular values of R₂ᵀ R₁, with Σ = R Rᵀ. Taking these, instead of roots of the
    eigenvalues of the product, keeps full precision when a covariance is rank-deficient (fewer vectors than entries),
    and makes it the quicker.

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
    return _distance(m1, s1, m2, s2, _root(s1))


def _distance(m1: Array, s1: Array, m2: Array, s2: Array, root1: Array) -> float:
    cross = np.linalg.svd(_root(s2).T @ root1, compute_uv=False).sum()
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


class FrechetTo:
    """d² to one Gaussian, many times: its root is taken once, and of N vectors only an [N, rank] matrix is decomposed.

    Args:
        mu, sigma: of the Gaussian, [D] and [D, D].

    Raises:
        UserError: a matrix that is no covariance.
    """

    def __init__(self, mu: Array, sigma: Array) -> None:
        self.mu, self.root, self.trace = mu, _root(sigma), float(np.trace(sigma))

    def __call__(self, features: ArrayLike) -> float:
        """d² of vectors [N, D], never below 0: the value of `frechet_distance_from_stats` up to rounding.

        Raises:
            UserError: fewer than 2 vectors, another D, or values that are not finite.
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != len(self.mu) or not np.isfinite(x).all():
            raise UserError(f"a Fréchet distance needs at least 2 finite vectors [N, {len(self.mu)}], not {x.shape}.")
        mean = x.mean(axis=0)
        centred = (x - mean) / np.sqrt(len(x) - 1)
        cross = np.linalg.svd(centred @ self.root, compute_uv=False).sum()
        difference = mean - self.mu
        return max(float(difference @ difference + np.square(centred).sum() + self.trace - 2.0 * cross), 0.0)


def frechet_infinity(
    features: np.ndarray, mu: Array, sigma: Array, seed: int = 0, points: int = INFINITY_POINTS
) -> tuple[float, dict[str, Any]]:
    """d² extrapolated to infinitely many vectors (Chong and Forsyth, arXiv 1911.07023): its bias falls as 1/N.

    Distances of random subsets of several sizes lie on a line over 1/N; its value at 0 is the figure. The straight line
    holds where there are several times more vectors than dimensions; with fewer the figure is still biased, only less. Where the
    true distance is near 0 it may come out below.

    Args:
        features: [N, D] of the set to judge.
        mu, sigma: statistics of the other, whose own bias stays.
        seed: of the subsets.
        points: sizes of subsets, evenly from the smallest to N.

    Returns:
        The figure, and how it was found: the sizes' ends, their number, and the root mean square distance from the line.

    Raises:
        UserError: fewer than 8 vectors.
    """
    n, dim = features.shape
    if n < 8:
        raise UserError(f"an extrapolation to infinitely many needs at least 8 vectors; there are {n}.")
    least = min(max(n // 10, int(INFINITY_LEAST * dim), 4), n // 2)
    sizes = np.linspace(least, n, points).astype(int)
    rng, root = np.random.default_rng(seed), _root(sigma)
    distances = []
    for size in sizes:
        mu1, sigma1 = gaussian_stats(features[rng.permutation(n)[:size]])
        distances.append(_distance(mu, sigma, mu1, sigma1, root))
    line = np.polynomial.Polynomial.fit(1 / sizes, distances, 1).convert()
    residual = float(np.sqrt(np.mean((line(1 / sizes) - distances) ** 2)))
    settings = {"from": int(sizes[0]), "to": int(sizes[-1]), "points": points, "residual": residual}
    return float(line.coef[0]), settings
