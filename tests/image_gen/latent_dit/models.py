"""Tiny DiTs and autoencoders with random weights, and conditions for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from rcg.image_gen.latent_dit.transformer import DiT

TINY: dict[str, Any] = {"sample_size": 8, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}
CONDITIONS: dict[str, dict[str, Any]] = {
    "representation": {"representation_dim": 6},
    "class": {"num_classes": 3},
    "none": {},
}


def tiny(condition: str = "representation", stirred: bool = True, seed: int = 0, **changes: Any) -> DiT:
    """A small model in evaluation mode; `stirred`: its zero weights are random, too, so that every input matters."""
    torch.manual_seed(seed)
    model = DiT(**{**TINY, "condition": condition, **CONDITIONS.get(condition, {}), **changes}).eval()
    if stirred:
        for block in [*model.blocks, model.head]:
            torch.nn.init.normal_(block.modulation.weight, std=0.1)
        torch.nn.init.normal_(model.head.linear.weight, std=0.2)
    return model


def given(condition: str, count: int) -> dict[str, torch.Tensor]:
    """A condition of each of `count` samples, as arguments of the model."""
    if condition == "representation":
        return {"representations": torch.randn(4096, 6, generator=torch.Generator().manual_seed(1))[:count]}
    return {"class_labels": torch.arange(count) % 3} if condition == "class" else {}


def batch(condition: str, count: int, channels: int = 4, size: int = 8) -> dict[str, torch.Tensor]:
    """The same as a training batch, with latents."""
    latents = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(2))
    names = {"representations": "representations", "class_labels": "labels"}
    return {"latents": latents, **{names[k]: v for k, v in given(condition, count).items()}}


def autoencoder_kl(**changes: Any) -> AutoencoderKL:
    """f2, four channels, for 16 px."""
    torch.manual_seed(0)
    levels = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**{**levels, "norm_num_groups": 4, "sample_size": 16, **changes}).eval()


def autoencoder_tiny() -> AutoencoderTiny:
    """f4, four channels."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    return AutoencoderTiny(**widths, num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3).eval()
