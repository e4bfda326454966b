"""Fréchet distance against closed forms, torch-fidelity's formula and scipy's matrix root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from torch_fidelity.metric_fid import fid_statistics_to_metric

from rcg.core.errors import UserError
from rcg.eval.frechet import FrechetTo, frechet_distance, frechet_distance_from_stats, frechet_infinity, gaussian_stats


def _covariance(rng: np.random.Generator, d: int, rank: int | None = None) -> np.ndarray:
    a = rng.normal(size=(d, rank or 2 * d))
    return a @ a.T / d


def test_diagonal_gaussians_have_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    m1, m2, s1, s2 = rng.normal(size=7), rng.normal(size=7), rng.uniform(0.1, 3, 7), rng.uniform(0.1, 3, 7)
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(s1) - np.sqrt(s2)) ** 2).sum()
    assert frechet_distance_from_stats(m1, np.diag(s1), m2, np.diag(s2)) == pytest.approx(expected, rel=1e-12)


def test_a_rotated_and_scaled_gaussian() -> None:
    rng = np.random.default_rng(1)
    sigma = _covariance(rng, 9)
    zero = np.zeros(9)
    # Σ and c²Σ commute: d² = (c - 1)² tr Σ
    assert frechet_distance_from_stats(zero, sigma, zero, 4 * sigma) == pytest.approx(np.trace(sigma), rel=1e-10)


@pytest.mark.parametrize("d", [3, 40])
def test_agrees_with_torch_fidelity_and_scipy(d: int) -> None:
    rng = np.random.default_rng(d)
    m1, m2, s1, s2 = rng.normal(size=d), rng.normal(size=d), _covariance(rng, d), _covariance(rng, d)
    ours = frechet_distance_from_stats(m1, s1, m2, s2)
    theirs = fid_statistics_to_metric({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}, verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    assert ours == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root), rel=1e-9)


def test_rank_deficient_covariances_keep_their_precision() -> None:
    rng = np.random.default_rng(2)
    d, rank = 60, 8
    basis = np.linalg.qr(rng.normal(size=(d, rank)))[0]
    small1, small2 = _covariance(rng, rank), _covariance(rng, rank)
    zero = np.zeros(d)
    inside = frechet_distance_from_stats(np.zeros(rank), small1, np.zeros(rank), small2)
    embedded = frechet_distance_from_stats(zero, basis @ small1 @ basis.T, zero, basis @ small2 @ basis.T)
    assert embedded == pytest.approx(inside, rel=1e-10)
    same = basis @ small1 @ basis.T
    assert frechet_distance_from_stats(zero, same, zero, same) < 1e-10 * np.trace(same)


def test_fewer_vectors_than_entries_and_symmetry() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(12, 50)), rng.normal(size=(15, 50)) + 0.3
    forward, backward = frechet_distance(a, b), frechet_distance(b, a)
    assert forward == pytest.approx(backward, rel=1e-10)
    # the nuclear norm of the cross-Gram matrix is the same trace, taken without any covariance
    ca, cb = (a - a.mean(0)) / np.sqrt(11), (b - b.mean(0)) / np.sqrt(14)
    nuclear = np.linalg.svd(ca @ cb.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (ca**2).sum() + (cb**2).sum() - 2 * nuclear
    assert forward == pytest.approx(expected, rel=1e-10)


def test_sets_of_vectors_approach_the_gaussian_value_and_do_not_overflow_in_float32() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(size=(40_000, 3)).astype(np.float32) + np.float32(1000)
    b = 2 * rng.normal(size=(40_000, 3)).astype(np.float32) + np.float32(1001)
    assert frechet_distance(a, b) == pytest.approx(3 + 3, abs=0.15)
    mu, sigma = gaussian_stats(a)
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(sigma, np.cov(a.astype(np.float64), rowvar=False), atol=1e-9)


@pytest.mark.parametrize(("count", "dim"), [(40, 64), (300, 512)])
def test_statistics_of_few_images_may_have_been_stored_in_float32(count: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    (mu1, sigma1), (mu2, sigma2) = (gaussian_stats(rng.normal(m, 1, (count, dim))) for m in (0, 0.2))
    exact = frechet_distance_from_stats(mu1, sigma1, mu2, sigma2)
    rounded = frechet_distance_from_stats(mu1, sigma1.astype(np.float32), mu2, sigma2.astype(np.float32))
    assert rounded == pytest.approx(exact, rel=1e-3)


def test_what_cannot_be_compared_says_so() -> None:
    ok = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(ok[:1], ok)
    with pytest.raises(UserError, match="different sizes"):
        frechet_distance(ok, ok[:, :2])
    with pytest.raises(UserError, match="finite"):
        frechet_distance(np.where(ok > 0, np.nan, ok), ok)
    with pytest.raises(UserError, match="negative eigenvalues"):
        frechet_distance_from_stats(np.zeros(2), np.diag([1.0, -0.5]), np.zeros(2), np.eye(2))


def test_infinity_takes_the_bias_of_few_vectors_away() -> None:
    rng = np.random.default_rng(0)
    mu, sigma, dim = np.zeros(12), np.eye(12), 12
    true = 0.25 * dim
    x = rng.normal(size=(120, dim)) + 0.5
    plain = frechet_distance_from_stats(*gaussian_stats(x), mu, sigma)
    figures = [frechet_infinity(x, mu, sigma, seed)[0] for seed in range(5)]
    means = [frechet_infinity(rng.normal(size=(120, dim)) + 0.5, mu, sigma)[0] for _ in range(20)]
    assert plain > true + 0.3
    assert np.std(figures) < 0.3
    assert np.mean(means) == pytest.approx(true, abs=0.2)
    settings = frechet_infinity(x, mu, sigma)[1]
    assert (settings["from"], settings["to"], settings["points"]) == (30, 120, 15)
    assert settings["residual"] < 1
    with pytest.raises(UserError, match="at least 8"):
        frechet_infinity(x[:7], mu, sigma)


@pytest.mark.parametrize(("count", "dim"), [(60, 8), (12, 30)])
def test_many_distances_to_one_gaussian(count: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(count, dim)), rng.normal(1, 2, size=(50, dim))
    to = FrechetTo(*gaussian_stats(y))
    assert to(x) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert to(y) == pytest.approx(0, abs=1e-9)
    for bad in (x[:1], x[:, 1:], x * np.nan):
        with pytest.raises(UserError, match="finite vectors"):
            to(bad)


def test_two_halves_of_a_set_are_apart_by_the_bias_of_few_alone() -> None:
    """Of N vectors of a D-dimensional unit Gaussian on each side: 2D/N of the means and, to second order,
    |S₁ - S₂|²/4 = D (D + 1)/2N of the covariances."""
    rng, dim, few = np.random.default_rng(0), 8, 500
    found = {}
    for count in (few, 4 * few):
        sets = [rng.normal(size=(2 * count, dim)) for _ in range(20)]
        found[count] = float(np.mean([frechet_distance(x[:count], x[count:]) for x in sets]))
        assert found[count] == pytest.approx((2 * dim + dim * (dim + 1) / 2) / count, rel=0.1)
    assert found[few] / found[4 * few] == pytest.approx(4, rel=0.15)
    whole = rng.normal(size=(few, dim))
    assert frechet_distance(whole, whole) < 1e-12
    assert frechet_distance(whole, whole[::-1]) < 1e-12
    assert frechet_distance(whole[: few // 2], whole[few // 2 :] + 0.5) > 10 * found[few]
