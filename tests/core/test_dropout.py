"""Quick dropout drops as many as it should, scales the others, and passes gradients through what it kept."""

from __future__ import annotations

import pytest
import torch

from rcg.core.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_scale_and_gradient(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 1003, dtype=dtype, requires_grad=True)
    y = dropout(x, p, training=True)
    dropped = (y == 0).double().mean()
    assert abs(dropped - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=4e-3, atol=0)
    (3 * y).sum().backward()
    torch.testing.assert_close(x.grad, 3 * y.detach(), rtol=8e-3, atol=0)


def test_hardly_anything_may_be_kept() -> None:
    assert dropout(torch.ones(100), 1 - 2**-18, training=True).unique().tolist() in ([0.0], [0.0, 2.0**16])


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4_000_000), 0.3, training=True) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 64):
        correlation = (kept[distance:] * kept[:-distance]).mean() / 0.21
        assert abs(correlation) < 5 / 2000


def test_the_global_seed_decides_and_evaluation_does_nothing() -> None:
    x, layer = torch.randn(7, 5), Dropout(0.4)
    torch.manual_seed(1)
    one = layer(x)
    torch.manual_seed(1)
    assert torch.equal(one, layer(x))
    assert not torch.equal(one, layer(x))
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
