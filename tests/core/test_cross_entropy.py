"""Cross-entropy in pieces is PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rcg.core import cross_entropy
from rcg.core.cross_entropy import linear_cross_entropy


def made(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden, words, bias = (torch.randn(*shape, generator=random, dtype=dtype) for shape in ((37, 8), (11, 8), (11,)))
    return hidden.requires_grad_(), words, bias.requires_grad_(), torch.randint(0, 11, (37,), generator=random)


def plain(hidden: Tensor, words: Tensor, bias: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    logits = F.linear(hidden, words, bias)
    return F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, label_smoothing=smoothing
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 10, 100])
def test_loss_and_gradients_are_pytorchs(monkeypatch: pytest.MonkeyPatch, rows: int, smoothing: float) -> None:
    monkeypatch.setattr(cross_entropy, "AT_ONCE", {"cpu": rows * 11})
    found = []
    for loss_of in (linear_cross_entropy, plain):
        hidden, words, bias, targets = made(torch.float64)
        loss = loss_of(hidden, words, bias, targets, smoothing)
        (3 * loss).backward()
        found.append((loss.detach(), hidden.grad, bias.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_within_autocast_it_rounds_as_a_linear_layer_does() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        given = made()
        ours = linear_cross_entropy(*given, 0.1)
        theirs = plain(*given, 0.1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert not torch.equal(ours, plain(*made(), 0.1))
    gradients = [torch.autograd.grad(loss, given[0])[0] for loss in (ours, theirs)]
    assert gradients[0].dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=0.05, atol=1e-3)


def test_a_bias_may_be_trained_alone_and_sizes_without_values_pass() -> None:
    hidden, words, bias, targets = made()
    gradients = [
        torch.autograd.grad(loss(hidden.detach(), words, bias, targets, 0.1), bias)[0]
        for loss in (linear_cross_entropy, plain)
    ]
    torch.testing.assert_close(*gradients)
    assert linear_cross_entropy(*(x.to("meta") for x in made())).shape == ()


def test_without_gradient_only_the_loss_is_made() -> None:
    hidden, words, bias, targets = made()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, words, bias, targets)
    torch.testing.assert_close(loss, plain(hidden, words, bias, targets, 0.0).detach())
    assert not loss.requires_grad
