"""Tiny PixelDiTs with random weights, and conditions for them."""

from __future__ import annotations

from typing import Any

import torch

from rcg.image_gen.pixel_dit.layers import ConvBlock
from rcg.image_gen.pixel_dit.transformer import PixelDiT

TINY: dict[str, Any] = {"image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}
CONDITIONS: dict[str, dict[str, Any]] = {
    "representation": {"representation_dim": 6},
    "class": {"num_classes": 3},
    "none": {},
}


def tiny(condition: str = "representation", stirred: bool = True, seed: int = 0, **changes: Any) -> PixelDiT:
    """A small model in evaluation mode; `stirred`: its zero weights are random, too, so that every input matters."""
    torch.manual_seed(seed)
    model = PixelDiT(**{**TINY, "condition": condition, **CONDITIONS.get(condition, {}), **changes}).eval()
    if stirred:
        for block in [*model.blocks, model.head, *(m for m in model.levels.modules() if isinstance(m, ConvBlock))]:
            torch.nn.init.normal_(block.modulation.weight, std=0.1)
        torch.nn.init.normal_(model.head.linear.weight, std=0.2)
    return model


def given(condition: str, count: int) -> dict[str, torch.Tensor]:
    """A condition of each of `count` samples, as arguments of the model."""
    if condition == "representation":
        return {"representations": torch.randn(4096, 6, generator=torch.Generator().manual_seed(1))[:count]}
    return {"class_labels": torch.arange(count) % 3} if condition == "class" else {}


def batch(condition: str, count: int, size: int = 8) -> dict[str, torch.Tensor]:
    """The same as a training batch, with images."""
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    names = {"representations": "representations", "class_labels": "labels"}
    return {"images": images, **{names[k]: v for k, v in given(condition, count).items()}}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
