"""Tiny ADMs with random weights, and conditions for them."""

from __future__ import annotations

from typing import Any

import torch

from rcg.image_gen.adm.unet import ADMUNet
from tests.golden.seeded import weight

TINY: dict[str, Any] = {"sample_size": 8, "base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1,
                        "attention_resolutions": (4,), "head_channels": 32}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "representation": {"representation_dim": 6},
    "class": {"num_classes": 3},
    "none": {},
}


def stir(model: torch.nn.Module, seed: int = 0) -> None:
    """Make zero weights random, too, so that every input matters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight(f"{seed} {name}", tuple(parameter.shape)))


def tiny(condition: str = "representation", stirred: bool = True, seed: int = 0, **changes: Any) -> ADMUNet:
    """A small model in evaluation mode."""
    torch.manual_seed(seed)
    model = ADMUNet(**{**TINY, "condition": condition, **CONDITIONS.get(condition, {}), **changes}).eval()
    if stirred:
        stir(model, seed)
    return model


def given(condition: str, count: int) -> dict[str, torch.Tensor]:
    """A condition of each of `count` samples, as arguments of the model."""
    if condition == "representation":
        return {"representations": torch.randn(64, 6, generator=torch.Generator().manual_seed(1))[:count]}
    return {"class_labels": torch.arange(count) % 3} if condition == "class" else {}


def batch(condition: str, count: int, size: int = 8) -> dict[str, torch.Tensor]:
    """The same as a training batch, with images."""
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    names = {"representations": "representations", "class_labels": "labels"}
    return {"images": images, **{names[k]: v for k, v in given(condition, count).items()}}
