"""Convolutions over small maps: what `SmallMaps` computes is what PyTorch computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rcg.encoders.quick import SMALL_MAP, SmallMaps, _SmallMapConvolution, quick_backbone
from rcg.encoders.ssl_encoder import SSLEncoder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the kernels that go the quick way."""
    seen: list[tuple[int, ...]] = []
    plain = _SmallMapConvolution.forward

    def forward(ctx: object, x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        seen.append(tuple(weight.shape[2:]))
        return plain(ctx, x, weight, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(_SmallMapConvolution, "forward", staticmethod(forward))
    return seen


def passes(layer: nn.Conv2d, x: Tensor, quick: bool) -> list[Tensor]:
    """Output and gradients of one pass under bf16."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        if quick:
            with SmallMaps():
                y = layer(x)
        else:
            y = layer(x)
    torch.manual_seed(1)
    (y.float() * torch.randn(y.shape)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


CASES = [
    ({"kernel_size": 3, "padding": 1}, (4, 4), (3, 3)),
    ({"kernel_size": 3, "padding": 2, "dilation": 2}, (4, 4), (3, 3)),
    ({"kernel_size": 3, "padding": 4, "dilation": 4}, (4, 4), (1, 1)),
    ({"kernel_size": 3, "padding": 4, "dilation": 4}, (2, 8), (1, 3)),
    ({"kernel_size": (5, 3), "padding": (2, 1)}, (2, 3), (3, 3)),
    ({"kernel_size": 1, "bias": False}, (3, 5), (1, 1)),
    ({"kernel_size": 7, "padding": 3}, (1, 1), (1, 1)),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("settings", "side", "kernel"), CASES)
def test_outputs_and_gradients_are_those_of_the_convolution(
    settings: dict[str, object],
    side: tuple[int, int],
    kernel: tuple[int, int],
    channels_last: bool,
    calls: list[tuple[int, ...]],
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, **settings)  # type: ignore[arg-type]
    x = torch.randn(5, 6, *side)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    got, wanted = (passes(layer, x, quick) for quick in (True, False))
    assert calls == [kernel]
    exact = nn.Conv2d(6, 10, **settings).double()  # type: ignore[arg-type]
    exact.load_state_dict(layer.state_dict())
    z = x.double().requires_grad_()
    y = exact(z)
    torch.manual_seed(1)
    (y * torch.randn(y.shape)).sum().backward()
    truth = [y.detach(), z.grad, *(p.grad for p in exact.parameters())]
    for ours, theirs, true in zip(got, wanted, truth, strict=True):
        assert true is not None
        assert ours.shape == theirs.shape
        off, usual = ((value.double() - true).norm() for value in (ours, theirs))
        assert off <= 2 * usual + 0.004 * true.norm()


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"kernel_size": 3, "padding": 1, "stride": 2}, (4, 4)),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, (4, 4)),
        ({"kernel_size": 3, "padding": 0}, (4, 4)),
        ({"kernel_size": 2, "padding": 1}, (4, 4)),
        ({"kernel_size": 3, "padding": "same"}, (4, 4)),
        ({"kernel_size": 3, "padding": 1}, (4, SMALL_MAP // 4 + 1)),
    ],
)
def test_other_convolutions_are_left_alone(
    settings: dict[str, object], side: tuple[int, int], calls: list[tuple[int, ...]]
) -> None:
    layer, x = nn.Conv2d(6, 10, **settings), torch.randn(2, 6, *side)  # type: ignore[arg-type]
    for ours, theirs in zip(passes(layer, x, True), passes(layer, x, False), strict=True):
        assert torch.equal(ours, theirs)
    assert calls == []


def test_only_training_in_bf16_takes_the_quick_way(calls: list[tuple[int, ...]]) -> None:
    kwargs = {"channels": [8, 8, 8, 8], "output_stride": 8}
    encoder = SSLEncoder("resnet18d", kwargs, image_size=32, pool="timm", head_layers=2, head_hidden_dim=8, head_dim=8)
    encoder.train()
    images = torch.rand(4, 3, 32, 32)
    encoder(images).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoder(images)
    assert calls == []
    with torch.autocast("cpu", torch.bfloat16):
        encoder(images)
    assert calls.count((1, 1)) >= 3  # the last block's dilation is as wide as the map


def test_outside_of_bf16_the_quick_way_is_not_taken(calls: list[tuple[int, ...]]) -> None:
    layer, x = nn.Conv2d(6, 10, 3, padding=1), torch.randn(2, 6, 4, 4)
    with quick_backbone(x):
        y = layer(x)
    assert calls == []
    assert torch.equal(y, layer(x))
    with torch.autocast("cpu", torch.bfloat16), quick_backbone(x):
        layer(x)
    assert calls == [(3, 3)]
