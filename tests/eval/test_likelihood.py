"""FLD: its parts against other ways to compute them, and that copying makes it worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from rcg.core.errors import UserError
from rcg.eval import likelihood
from rcg.eval.likelihood import feature_likelihood_divergence, fit_widths, negative_log_likelihood


def draw(seed: int, n: int, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def test_likelihood_is_the_mixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", 3)
    centres, test = draw(0, 5), draw(1, 7)
    widths = np.linspace(-1, 1, 5)
    densities = [
        np.mean([multivariate_normal.pdf(x, c, np.exp(w)) for c, w in zip(centres, widths, strict=True)]) for x in test
    ]
    found = negative_log_likelihood(*(torch.from_numpy(a).double() for a in (test, centres, widths)))
    assert found == pytest.approx(-np.mean(np.log(densities)) / 4, rel=1e-9)


def test_widths_follow_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same 50 steps with autograd."""
    monkeypatch.setattr(likelihood, "CHUNK", 6)
    centres, train = torch.from_numpy(draw(2, 8)).double(), torch.from_numpy(draw(3, 20)).double()
    squares = ((train[:, None] - centres) ** 2).sum(2)
    far = 0.81 * ((train - train.mean(0)) ** 2).sum(1)
    widths = ((squares.min(0).values + 1e-3) / 4).log().requires_grad_()
    background = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([widths, background], lr=0.5)

    def logs(d: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return -0.5 * d / w.exp() - 2 * w - 2 * np.log(2 * np.pi)

    for _ in range(50):
        optimizer.zero_grad()
        both = torch.cat([logs(squares, widths) - np.log(8), logs(far, background)[:, None]], 1)
        (-both.logsumexp(1).mean() / 4).backward()
        optimizer.step()
        with torch.no_grad():
            widths.clamp_(-40, 20)
    # Adam's first steps follow signs of gradients, so rounding of the kept distances (float32) may show a little
    assert fit_widths(centres, train).numpy() == pytest.approx(widths.detach().numpy(), abs=0.02)


def test_it_tells_good_bad_and_copied_samples() -> None:
    modes = np.random.default_rng(7).normal(size=(8, 4)).astype(np.float32) * 4

    def images(seed: int, n: int) -> np.ndarray:
        return modes[np.arange(n) % 8] + 0.5 * draw(seed, n)

    train, test = images(4, 400), images(5, 300)

    def fld(generated: np.ndarray) -> float:
        return feature_likelihood_divergence(generated, train, test, seed=0)[0]["fld"]

    good = fld(images(6, 300))
    assert abs(good) < 5
    assert fld(images(6, 300) + 2 * draw(8, 300)) > good + 5  # noisy
    assert fld(images(6, 300)[np.arange(300) % 8 < 4]) > good + 5  # half of the modes
    assert fld(train[:300] + 1e-4 * draw(9, 300)) > good + 20  # copies


def test_a_constant_feature_does_no_harm() -> None:
    sets = [np.concatenate([draw(i, 40), np.ones((40, 1), np.float32)], axis=1) for i in range(3)]
    assert np.isfinite(feature_likelihood_divergence(*sets, seed=0)[0]["fld"])
    with pytest.raises(UserError, match="at least 8"):
        feature_likelihood_divergence(sets[0][:7], sets[1], sets[2], seed=0)
