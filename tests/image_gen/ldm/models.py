"""Tiny LDMs and VQ autoencoders with random weights, and conditions for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import VQModel

from rcg.image_gen.ldm.unet import LDMUNet
from tests.image_gen.adm.models import CONDITIONS, given, stir

TINY: dict[str, Any] = {"sample_size": 4, "base_channels": 32, "channel_multipliers": (1, 2), "num_res_blocks": 1,
                        "head_channels": 16, "token_dim": 10}  # fmt: skip


def tiny(condition: str = "representation", stirred: bool = True, seed: int = 0, **changes: Any) -> LDMUNet:
    """A small model in evaluation mode; `stirred`: its zero weights are random, too."""
    torch.manual_seed(seed)
    model = LDMUNet(**{**TINY, "condition": condition, **CONDITIONS.get(condition, {}), **changes}).eval()
    if stirred:
        stir(model, seed)
    return model


def autoencoder(image_size: int = 8) -> VQModel:
    """Shrinks images to half, 4 channels, 16 codes."""
    torch.manual_seed(0)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
        sample_size=image_size,
        scaling_factor=1.0,
    ).eval()


def batch(condition: str, count: int) -> dict[str, torch.Tensor]:
    """A training batch of latents."""
    latents = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    names = {"representations": "representations", "class_labels": "labels"}
    return {"latents": latents, **{names[k]: v for k, v in given(condition, count).items()}}
