"""Train a small continuous autoencoder (diffusers' AutoencoderKL, latents 4 x 16 x 16 of 32 px images, 1.5 million weights), so
that the families of latents can be compared at small size. `rcg-train-tokenizer` makes discrete tokenizers only.

    python benchmarks/autoencoder.py --data TRAIN --perceptual-encoder rcg/cifar10 --out FOLDER

The loss is L1, the perceptual distance by the frozen encoder, and a little KL. Weights are averaged for the export and kept
as float16; `scaling_factor` gives latents a standard deviation of 1.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from rcg.core.components import load_model
from rcg.core.half import halve_weights
from rcg.core.hardware import pick_bf16, pick_device
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.tokenizers.autoencoder import LatentCodec
from rcg.image_gen.tokenizers.vq_losses import perceptual_distance
from rcg.training.schedules import EMA
from rcg.training.subset import Subset, hold_out

SIZE = 32
WARMUP = 50
HELD_OUT = 1000
MEASURED = 5000
FIRST_LOGVAR = -6.0
"""Of the posterior before training. From the usual 0 the first hundreds of steps would go to quieting its noise."""


def new_model() -> Any:
    """Two levels, one residual block each and no attention: every latent sees a part of the picture only."""
    model: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        latent_channels=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        model.quant_conv.bias[4:] = FIRST_LOGVAR
    return model


def losses(model: Any, encoder: SSLEncoder, images: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of images [B, 3, S, S] in [0, 1], and its parts."""
    posterior = DiagonalGaussianDistribution(model.encode(2 * images - 1).latent_dist.parameters.float())
    made = (model.decode(posterior.sample()).sample.float() + 1) / 2
    l1, l2, kl = F.l1_loss(made, images), F.mse_loss(made, images), posterior.kl().mean()
    with torch.no_grad():
        target = encoder.feature_maps(images)
    distance = perceptual_distance(encoder.feature_maps(made), target)
    told = {"l1": l1, "psnr": -10 * l2.log10(), "perceptual": distance, "kl": kl}
    return l1 + distance + kl_weight * kl, {name: value.detach() for name, value in told.items()}


def train(model: Any, encoder: SSLEncoder, data: Subset, args: argparse.Namespace, device: torch.device) -> None:
    """All steps; the model has the averaged weights afterwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    average = EMA({"model": model}, 0.995)
    rng, order, begun = np.random.default_rng(args.seed), np.empty(0, np.int64), time.perf_counter()
    for step in range(args.steps):
        if len(order) < args.batch_size:
            order = rng.permutation(len(data))
        part, order = order[: args.batch_size], order[args.batch_size :]
        images = to_unit(data.batch(part, rng.integers(2**63, size=len(part), dtype=np.uint64))["images"].to(device))
        rate = args.lr * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=pick_bf16("auto", device)):
            loss, told = losses(model, encoder, images, args.kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        if (step + 1) % 50 == 0:
            figures = ", ".join(f"{name} {value.item():.4g}" for name, value in told.items())
            print(f"step {step + 1}, {time.perf_counter() - begun:.0f} s: {figures}", flush=True)
    with average.applied():
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)


@torch.inference_mode()
def measure(model: Any, data: Subset, count: int, device: torch.device) -> tuple[Tensor, float]:
    """Latents of the first `count` images, and the mean PSNR of what is made of them, in dB."""
    codec, latents, psnr = LatentCodec(model), [], []
    for part in np.array_split(np.arange(min(count, len(data))), math.ceil(count / 100)):
        images = to_unit(data.batch(part, np.zeros(len(part), np.uint64))["images"].to(device))
        latents.append(codec.encode(images))
        psnr.append(-10 * (codec.decode(latents[-1]) - images).square().mean((1, 2, 3)).clamp(min=1e-10).log10())
    return torch.cat(latents), torch.cat(psnr).mean().item()


def main() -> None:
    """Parse the flags, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images to train on; some are kept for the PSNR")
    parser.add_argument("--perceptual-encoder", required=True, help="folder or name of an SSLEncoder with feature maps")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--kl-weight", type=float, default=1e-6, help="of the KL in nats an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = pick_device(args.device)
    source = open_source(args.data)
    kept, held = hold_out(len(source), HELD_OUT)
    plain = ImageDataset(source, SIZE)
    encoder = load_model(SSLEncoder, args.perceptual_encoder).to(device).requires_grad_(False)
    model = new_model()
    model.to(device).train()
    train(model, encoder, Subset(ImageDataset(source, SIZE, "crop_flip"), kept), args, device)
    model.eval().register_to_config(scaling_factor=1.0)
    some = np.random.default_rng(args.seed).permutation(kept)
    latents, _ = measure(model, Subset(plain, some), MEASURED, device)
    model.register_to_config(scaling_factor=1 / latents.std().item())
    scaled = latents * model.config.scaling_factor
    _, psnr = measure(model, Subset(plain, held), len(held), device)
    model.save_pretrained(args.out)
    halve_weights(args.out)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size} weights, {psnr:.2f} dB on {len(held)} images kept, scaling_factor {model.config.scaling_factor:.4f}")
    print(f"scaled latents by channel: mean {scaled.mean((0, 2, 3)).tolist()}, std {scaled.std((0, 2, 3)).tolist()}")


if __name__ == "__main__":
    main()
