"""Draws from categorical distributions against the plain way, and where they could go wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcg.core import categorical
from rcg.core.categorical import draw_categories


def plainly(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    log_p = logits.double().log_softmax(-1)
    ends = log_p.exp().cumsum(-1)
    drawn = torch.searchsorted(ends, uniform[..., None] * ends[..., -1:], right=True)
    return drawn[..., 0], log_p.gather(-1, drawn)[..., 0]


@pytest.mark.parametrize("count", [1, 5, 64, 65, 200, 1024, 4095])
def test_draws_are_those_of_the_distribution_function(count: int) -> None:
    torch.manual_seed(count)
    logits, uniform = 3 * torch.randn(3, 40, count), torch.rand(3, 40, dtype=torch.float64)
    found, expected = draw_categories(logits, uniform), plainly(logits, uniform)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniform = torch.randn(50, 300), torch.rand(50, dtype=torch.float64)
    whole = draw_categories(logits, uniform)
    monkeypatch.setattr(categorical, "AT_ONCE", 700)
    for part, all_ in zip(draw_categories(logits, uniform), whole, strict=True):
        torch.testing.assert_close(part, all_, rtol=0, atol=1e-14)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("only", [0, 63, 64, 129])
def test_what_cannot_be_is_never_drawn(uniform: float, only: int) -> None:
    """All probability on one category, the first and last of blocks among them: others underflow to nothing."""
    logits = torch.full((1, 130), -1e4)
    logits[0, only] = 0
    drawn, log_p = draw_categories(logits, torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [only]
    assert log_p.tolist() == [0.0]


def test_frequencies_are_the_probabilities() -> None:
    p = torch.rand(150, generator=torch.Generator().manual_seed(0)).softmax(0)
    count = 200_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn, _ = draw_categories(p.log().expand(count, -1), uniform)
    assert ((drawn.bincount(minlength=150) / count - p).abs() < 1.5 / count).all()
    assert (drawn.diff() >= 0).all()  # categories in ascending order


def test_no_rows_at_all() -> None:
    drawn, log_p = draw_categories(torch.empty(2, 0, 7), torch.empty(2, 0))
    assert drawn.shape == log_p.shape == (2, 0)


def test_what_is_not_finite_draws_something_that_is_not_finite() -> None:
    drawn, log_p = draw_categories(torch.full((2, 6), float("nan")), torch.rand(2))
    assert ((drawn >= 0) & (drawn < 6)).all()
    assert log_p.isnan().all()
