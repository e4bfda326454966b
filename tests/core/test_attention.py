"""The quick way computes what PyTorch's own attention does, forward and backward, and is taken where it pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rcg.core import attention
from rcg.core.attention import attend, quick_attention

SHAPES = [((2, 3, 5, 8), 5, None), ((2, 3, 5, 8), 7, None), ((2, 3, 5, 8), 5, 1), ((2, 3, 5, 8), 5, 2)]
"""Of queries; keys; rows of the bias."""


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what is multiplied in batches."""
    seen: list[torch.Size] = []
    plain = torch.bmm

    def bmm(a: Tensor, b: Tensor) -> Tensor:
        seen.append(a.shape)
        return plain(a, b)

    monkeypatch.setattr(torch, "bmm", bmm)
    return seen


def given(shape: tuple[int, ...], keys: int, rows: int | None, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values as a layer lays them, and a bias if it has rows; all want gradients."""
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(batch, n, heads, width, generator=generator).transpose(1, 2) for n in (length, keys, keys)]
    if rows is not None:
        parts.append(torch.randn(rows, heads, length, keys, generator=generator))
    return [part.to(dtype).requires_grad_() for part in parts]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("shape", "keys", "rows"), SHAPES)
def test_it_is_softmax_attention(
    shape: tuple[int, ...], keys: int, rows: int | None, dtype: torch.dtype, tolerance: float, products: list[Any]
) -> None:
    parts = given(shape, keys, rows, dtype)
    y = attend(*parts)
    assert bool(products) == (dtype == torch.bfloat16 or rows is not None)
    q, k, v, *bias = exact = [x.detach().double().requires_grad_() for x in parts]
    expected = (q @ k.transpose(-1, -2) / shape[-1] ** 0.5 + sum(bias)).softmax(dim=-1) @ v
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(direction)
    expected.backward(direction.double())
    for found, wanted in zip(parts, exact, strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=0, atol=3 * tolerance)


def test_products_only_where_they_pay(products: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def called(dtype: torch.dtype = torch.bfloat16, dropout: float = 0.0) -> bool:
        products.clear()
        attend(*given((1, 2, 4, 8), 6, None, dtype), dropout=dropout)
        return bool(products)

    assert called()
    assert not called(torch.float32)
    assert called(torch.float32, 0.5)
    with torch.no_grad():
        assert not called()
    monkeypatch.setattr(attention, "MOST_KEYS", 5)
    assert not called()
    assert called(dropout=0.5)


def test_dropout_keeps_the_mean() -> None:
    parts = given((64, 8, 16, 8), 16, None, torch.float32)
    torch.manual_seed(0)
    dropped, kept = attend(*parts, dropout=0.3), attend(*parts)
    assert (dropped - kept).abs().mean() > 0.02
    assert (dropped - kept).mean().abs() < 0.01


class Module(torch.nn.Module):
    """As timm's and diffusers' do it."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, **self.how)


@pytest.mark.parametrize(
    ("how", "taken"),
    [({}, True), ({"attn_mask": None, "dropout_p": 0.0, "is_causal": False}, True), ({"is_causal": True}, False), ({"scale": 2.0}, False), ({"attn_mask": torch.zeros(5, 5, dtype=torch.bfloat16)}, False)],
)  # fmt: skip
def test_other_libraries_modules(how: dict[str, Any], taken: bool, products: list[Any]) -> None:
    x = torch.randn(2, 2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    module = Module(**how)
    with quick_attention(x):  # no autocast: not training in bf16
        module(x)
    assert not products
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
        assert not products
        with quick_attention(x):
            module(x)
        assert bool(products) == taken
        products.clear()
        with torch.no_grad(), quick_attention(x):
            module(x)
    assert not products
