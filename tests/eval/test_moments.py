"""What is kept of a stream: mean and covariance, and a sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcg.core.errors import UserError
from rcg.eval.moments import Moments, RowSample

X = torch.from_numpy(np.random.default_rng(0).normal(size=(1300, 5)).astype(np.float32)) * 0.1 + 100


def moments(rows: torch.Tensor, size: int) -> Moments:
    kept = Moments(rows.shape[1])
    for part in rows.split(size):
        kept.add(part)
    kept.flush()
    return kept


def test_mean_and_covariance_in_any_portions() -> None:
    mu, sigma = moments(X, 7).stats()
    wide = X.double().numpy()
    assert mu == pytest.approx(wide.mean(0), rel=1e-14)
    assert sigma == pytest.approx(np.cov(wide, rowvar=False), rel=1e-10)  # though the mean is 1000 deviations large
    assert mu.dtype == sigma.dtype == np.float64
    for size in (1, 512, 700, 1300):
        again = moments(X, size).stats()
        assert (again[0] == mu).all()  # to the bit
        assert (again[1] == sigma).all()


def test_several_processes_together() -> None:
    whole = moments(X, 50).stats()
    first, second, nothing = moments(X[:431], 50), moments(X[431:], 50), Moments(5)
    nothing.flush()
    first.merge(nothing)
    first.merge(second)
    assert first.count == 1300
    assert first.stats()[0] == pytest.approx(whole[0], rel=1e-13)
    assert first.stats()[1] == pytest.approx(whole[1], rel=1e-11)
    with pytest.raises(UserError, match="at least 2"):
        moments(X[:1], 1).stats()


def sample(size: int, seed: int, portion: int, start: int = 0, stop: int = 1300) -> RowSample:
    kept = RowSample(size, seed)
    for i in range(start, stop, portion):
        kept.add(i, X[i : min(i + portion, stop)].numpy())
    return kept


def test_a_sample_is_fair_and_does_not_depend_on_portions_or_processes() -> None:
    kept = sample(100, 3, 11).rows()
    assert kept.shape == (100, 5)
    assert (sample(100, 3, 400).rows() == kept).all()
    first = sample(100, 3, 20, 0, 0)
    first.merge(sample(100, 3, 20, 0, 0))  # nobody has seen anything yet
    first.merge(sample(100, 3, 20, 0, 500))
    first.merge(sample(100, 3, 20, 500, 1300))
    assert (first.rows() == kept).all()
    assert not (sample(100, 4, 11).rows() == kept).all()
    numbers = [int(np.flatnonzero((X.numpy() == row).all(1))[0]) for row in kept]
    assert numbers == sorted(numbers)
    assert 400 < np.mean(numbers) < 900  # of the whole stream, not of its beginning
    assert (sample(2000, 3, 11).rows() == X.numpy()).all()
