"""Tiny frozen generators with random weights, and images to invert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from PIL import Image

WIDTH, SIZE = 16, 16


def stable_diffusion(folder: Path, unet: dict[str, Any] | None = None, scheduler: dict[str, Any] | None = None) -> Path:
    """A pipeline in the layout of Stable Diffusion 1, whose U-Net heeds its condition; without a text encoder."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH, "attention_head_dim": 4, "norm_num_groups": 1,
    }  # fmt: skip
    network = UNet2DConditionModel(**{**sizes, **(unet or {})})
    for name, parameter in network.named_parameters():
        if "attn2" in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder / "unet")
    vae = AutoencoderTiny(  # it has no norms, so that a picture's colour is in its latents
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=4,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=1.0,
    )  # fmt: skip
    for parameter in vae.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
    vae.save_pretrained(folder / "vae")
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
             "set_alpha_to_one": False, **(scheduler or {})}  # fmt: skip
    kind = DDIMScheduler if noise.get("prediction_type") == "sample" else PNDMScheduler
    if kind is PNDMScheduler:
        noise["skip_prk_steps"] = True
    kind(**noise).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
        "scheduler": ["diffusers", kind.__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def pictures(folder: Path, per_class: int = 3, classes: tuple[str, ...] = ("cat", "dog"), size: int = SIZE) -> Path:
    """Noisy pictures, each of its own colour, in a folder for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            colour = rng.integers(0, 256, 3)
            array = np.clip(colour + rng.integers(-30, 30, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{i}.png")
    return folder
