"""What is measured of representations before training."""

from __future__ import annotations

import pytest
import torch

from rcg.rdm.statistics import half_hidden_noise, is_standardized, mean_and_std, standardized


def test_mean_and_std_of_each_entry() -> None:
    x = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([0.0, 2.0, 7.0])
    mean, std = mean_and_std(x)
    torch.testing.assert_close(mean, x.mean(0).float())
    torch.testing.assert_close(std[:2], x.std(0, unbiased=False).float()[:2])
    assert 0 < float(std[2]) < 0.01  # a constant entry is divided by something
    assert mean.dtype == std.dtype == torch.float32


def test_standardised_ones_are_known() -> None:
    x = torch.randn(20, 12) * 3 + 1
    assert not is_standardized(x)
    y = standardized(x)
    assert is_standardized(y)
    assert is_standardized(y.half())
    torch.testing.assert_close(standardized(y), y)
    expected = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    torch.testing.assert_close(y, expected)


def test_the_noise_that_hides_half() -> None:
    """Independent entries: half is hidden where noise and data are equal. Copies of one entry: D times later."""
    generator = torch.Generator().manual_seed(0)
    assert half_hidden_noise(torch.randn(20_000, 8, generator=generator)) == pytest.approx(1, rel=0.01)
    copies = torch.randn(2000, 1, generator=generator).expand(-1, 16)
    assert half_hidden_noise(copies) == pytest.approx(4, rel=1e-3)  # the one direction has variance 16: odds √16
    x = torch.randn(2000, 6, generator=generator)
    x[:, 3:] = x[:, :3] + 0.1 * x[:, 3:]
    odds = half_hidden_noise(x)
    assert half_hidden_noise(x * torch.arange(1, 7) + 3) == pytest.approx(odds, rel=1e-4)  # units do not matter
    z = (x - x.mean(0)) / x.std(0)
    # by another way: the mean squared error of ridge regression from noisy data, at that noise, is half
    sigma = odds / (1 + odds)
    covariance = (z.T @ z / len(z)).double()
    noisy = (1 - sigma) ** 2 * covariance + sigma**2 * torch.eye(6)
    error = covariance - (1 - sigma) ** 2 * covariance @ torch.linalg.inv(noisy) @ covariance
    assert float(error.trace() / covariance.trace()) == pytest.approx(0.5, abs=1e-3)
