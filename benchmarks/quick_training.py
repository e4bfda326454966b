"""What a CPU's training passes in bf16 gain by the detours round slow operations of PyTorch: the same passes with and without, in turns.

    python benchmarks/quick_training.py --out benchmarks/results/quick_training.json

The detours are `rcg.core.attention`, `rcg.core.cross_entropy`, `rcg.encoders.quick.SmallMaps` and `rcg.image_gen.unets.make_quick`. A
pass is forward and backward in bf16, one thread, of noise: through the backbones of an encoder in the box and of a ViT, and through
each family's network in the size of its preset for CIFAR-10, without a condition. The pixel transformer is left out, and of MAGE only
the loss is compared (256 tokens of 4,095 codes): with dropout, or a bias on attention, they take that detour in any precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
import tyro
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from machine import cpu_name
from torch import Tensor, nn

from rcg.core.components import load_any
from rcg.core.files import write_json
from rcg.encoders.quick import quick_backbone
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.adm.unet import ADMUNet
from rcg.image_gen.edm.unet import EDMUNet
from rcg.image_gen.latent_dit.transformer import DiT
from rcg.image_gen.ldm.unet import LDMUNet
from rcg.image_gen.mage.objective import MageObjective
from rcg.image_gen.mage.transformer import MageTransformer
from rcg.rdm.codes.transformer import CodeTransformer
from rcg.scripts._command import set_up_process

Pass = Callable[[], Tensor]


@dataclass
class Config:
    """What to time."""

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """Which networks."""
    images: int = 64
    """Of a pass (of representations eight times as many)."""
    repeats: int = 3
    """Passes of each kind; the quickest counts."""
    out: Path | None = None
    """Where the figures go."""


def encoder(images: int) -> tuple[nn.Module, Pass]:
    """MoCo-v3's in the box."""
    backbone = load_any((SSLEncoder,), "rcg/cifar10").backbone.train().to(memory_format=torch.channels_last)
    x = torch.randn(images, 3, 32, 32).to(memory_format=torch.channels_last)
    return backbone, lambda: _features(backbone, x)


def vit(images: int) -> tuple[nn.Module, Pass]:
    """ViT-S with patches of 8 at 64 px: 65 tokens."""
    backbone = timm.create_model("vit_small_patch16_224", patch_size=8, img_size=64, num_classes=0)
    x = torch.randn(images, 3, 64, 64)
    return backbone, lambda: _features(backbone, x)


def _features(backbone: nn.Module, x: Tensor) -> Tensor:
    with quick_backbone(x):
        features: Tensor = backbone(x)
    return features


def denoiser(model: nn.Module, channels: int, side: int, images: int, times: float) -> tuple[nn.Module, Pass]:
    """A model of noisy samples."""
    x, t = torch.randn(images, channels, side, side), times * torch.rand(images)
    return model, lambda: model(x, t)


def codes(images: int) -> tuple[nn.Module, Pass]:
    """The RDM of codes."""
    model = CodeTransformer(representation_dim=256, positions=8, num_codes=256, width=384, depth=6, num_heads=6)
    given = torch.randint(0, 256, (8 * images, 8))
    return model, lambda: model(given)


NONE: dict[str, Any] = {"condition": "none"}


def mage(images: int) -> tuple[nn.Module, Pass]:
    """MAGE with the tokens of `rcg/cifar10-tokenizer`, three quarters of them masked."""
    model = MageTransformer(
        16, 4095, width=192, depth=6, num_heads=3, decoder_depth=3, decoder_num_heads=3, dropout=0.0, **NONE
    )
    objective, batch = MageObjective(model), {"tokens": torch.randint(0, 4095, (images, 16, 16))}
    return objective, lambda: objective(batch, mask_ratio=0.75)["loss"]


def whole_cross_entropy(hidden: Tensor, words: Tensor, bias: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """PyTorch's own, of all logits at once."""
    return F.cross_entropy(F.linear(hidden, words, bias).float(), targets, label_smoothing=label_smoothing)


PARTS: dict[str, Callable[[int], tuple[nn.Module, Pass]]] = {
    "encoder of the box": encoder,
    "ViT-S/8 at 64 px": vit,
    "dit": lambda n: denoiser(DiT(16, width=256, depth=8, num_heads=4, **NONE), 4, 16, n, 999),
    "ldm": lambda n: denoiser(
        LDMUNet(16, 4, base_channels=64, channel_multipliers=(1, 2), num_res_blocks=2, head_channels=32, **NONE), 4, 16, n, 999
    ),
    "adm": lambda n: denoiser(
        ADMUNet(
            32, base_channels=32, channel_multipliers=(1, 2, 4), num_res_blocks=2, attention_resolutions=(16, 8),
            head_channels=32, **NONE,
        ), 3, 32, n, 999,
    ),
    "edm": lambda n: denoiser(EDMUNet(32, channels=(32, 64, 128), layers=2, attention_size=16, dropout=0.0, **NONE), 3, 32, n, 1),
    "codes": codes,
    "mage": mage,
}  # fmt: skip


@contextmanager
def plainly(network: nn.Module) -> Iterator[None]:
    """Within it, no detour is taken."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    kept = [module.processor for module in attentions]
    for module in attentions:
        module.set_processor(AttnProcessor2_0())
    with (
        mock.patch("rcg.core.attention.MOST_KEYS", 0),
        mock.patch("rcg.encoders.quick.SmallMaps", nullcontext),
        mock.patch("rcg.image_gen.mage.layers.linear_cross_entropy", whole_cross_entropy),
    ):
        yield
    for module, processor in zip(attentions, kept, strict=True):
        module.set_processor(processor)


def main(config: Config) -> None:
    """Print and write seconds and their ratios."""
    set_up_process()  # keeps freed memory, as all commands do
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for name in config.parts:
        torch.manual_seed(0)
        network, forward = PARTS[name](config.images)
        for parameter in network.parameters():  # zeros would let PyTorch skip nothing, but gradients vanish
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        seconds: dict[str, list[float]] = {"plain": [], "quick": []}
        for _ in range(config.repeats + 1):
            for way, times in seconds.items():
                network.zero_grad()
                with plainly(network) if way == "plain" else nullcontext():
                    start = time.perf_counter()
                    with torch.autocast("cpu", torch.bfloat16):
                        output = forward()
                    output.float().square().mean().backward()
                    times.append(time.perf_counter() - start)
        best = {way: min(times[1:]) for way, times in seconds.items()}
        found[name] = {**best, "ratio": best["plain"] / best["quick"]}
        print(f"{name}: {best['plain']:.3f} s, {best['quick']:.3f} s, {found[name]['ratio']:.2f}", flush=True)
    if config.out is not None:
        report = {
            "what": "seconds of a training pass in bf16 on one thread, without and with the detours",
            "command": f"python benchmarks/quick_training.py --images {config.images} --repeats {config.repeats}",
            "machine": {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__},
            "seconds": found,
        }
        write_json(config.out, report)


if __name__ == "__main__":
    main(tyro.cli(Config))
