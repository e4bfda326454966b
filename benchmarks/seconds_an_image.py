"""What an image costs in each family of generators, in the sizes that `docs/results.md` compares: seconds, without and with guidance.

    python benchmarks/seconds_an_image.py --out benchmarks/results/seconds_an_image.json

A pipeline has the RDM in the box and an image generator of a preset for CIFAR-10 (random weights: they do not change the time),
and makes --images of 32 px in one call with its family's own number of steps, codes decoded. Guidance is as `docs/results.md` has it:
by the null condition, along the whole way (so does MAGE, whose scale grows on the way). The families take turns; the quickest of
--repeats counts.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml
from diffusers.utils import logging
from machine import cpu_name
from torch import nn

from rcg import RCGPipeline, VQTokenizer
from rcg.core.components import load_any
from rcg.core.files import write_json
from rcg.core.hardware import pick_bf16
from rcg.core.precision import Precision
from rcg.image_gen.families import MODELS, TOKENIZERS
from rcg.image_gen.protocol import Task
from rcg.image_gen.recipes import RECIPES, Arch
from rcg.image_gen.tokenizers.codec import codec_of
from rcg.scripts._command import set_up_process

BOX = "rcg/cifar10"
PRESETS: dict[Arch, str] = {
    "pixel-dit": "generator-pixel-cifar10",
    "dit": "generator-dit-cifar10",
    "ldm": "generator-ldm-cifar10",
    "adm": "generator-adm-cifar10",
    "edm": "generator-edm-cifar10",
    "mage": "generator-cifar10",
}
SCALE = 3.0


@dataclass
class Config:
    """What to time."""

    images: int = 64
    """Of a call."""
    repeats: int = 2
    """Calls of each kind, after one that does not count."""
    families: tuple[Arch, ...] = tuple(PRESETS)
    """Which."""
    out: Path | None = None
    """Where the figures go."""


def preset(name: str) -> dict[str, Any]:
    """The flags of a preset."""
    text = (resources.files("rcg.configs") / f"{name}.yaml").read_text()
    return {key: tuple(v) if isinstance(v, list) else v for key, v in yaml.safe_load(text).items()}


def few_tokens() -> VQTokenizer:
    """The tokenizer of 64 tokens with a flow decoder as large as the generator in the box."""
    sizes = preset("tokenizer-cifar10-64")
    names = (
        "image_size",
        "patch_size",
        "base_channels",
        "channel_multipliers",
        "num_res_blocks",
        "levels",
        "norm_groups",
    )
    drawing: Any = load_any(MODELS, BOX).config
    flow = {
        k: drawing[k] for k in ("image_size", "patch_size", "width", "depth", "num_heads", "conv_channels", "mlp_ratio")
    }
    flow |= {"steps": preset("decoder-cifar10-64")["flow_steps"]}
    codes = {"num_codes": 1000, "code_dim": len(sizes["levels"])}
    return VQTokenizer(**{name: sizes[name] for name in names}, **codes, flow_decoder=flow)


def pipeline(family: Arch) -> RCGPipeline:
    """An untrained generator behind the RDM in the box."""
    torch.manual_seed(0)
    box = RCGPipeline.from_pretrained(BOX)
    tokenizer: nn.Module | None = None
    if family in ("dit", "ldm"):
        tokenizer = load_any(TOKENIZERS, "rcg/cifar10-autoencoder")
    elif family == "mage":
        tokenizer = few_tokens()
    shape: tuple[int, ...] = (3, 32, 32)
    if tokenizer is not None:
        with torch.no_grad():
            shape = tuple(codec_of(tokenizer).encode(torch.zeros(1, *shape)).shape[1:])
    recipe, flags = RECIPES[family], preset(PRESETS[family])
    own = {field.name for field in dataclasses.fields(recipe)}
    made = recipe(**{key: value for key, value in flags.items() if key in own})
    generator = made.objective(Task("representation", shape, box.representation_dim, tokenizer=tokenizer)).generator
    for parameter in generator.model.parameters():  # of zeros nothing would come but the noise itself
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    pipe = RCGPipeline(generator.model, generator.scheduler, tokenizer, box.rdm, box.rdm_scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(config: Config) -> None:
    """Print and write the seconds."""
    set_up_process()
    logging.disable_progress_bar()
    precision: Precision = "bf16" if pick_bf16("auto", torch.device("cpu")) else "fp32"
    pipes = {family: pipeline(family) for family in config.families}
    ways = {"no guidance": 1.0, "guided": SCALE}
    seconds: dict[Arch, dict[str, list[float]]] = {family: {way: [] for way in ways} for family in pipes}
    for _ in range(config.repeats + 1):
        for family, pipe in pipes.items():
            for way, scale in ways.items():
                start = time.perf_counter()
                pipe(
                    config.images,
                    generator=torch.Generator().manual_seed(0),
                    guidance_scale=scale,
                    output_type="pt",
                    precision=precision,
                )
                seconds[family][way].append((time.perf_counter() - start) / config.images)
    rows = {
        family: {
            "weights": sum(p.numel() for p in pipe.image_generator.parameters()),
            "steps": pipe.settings()["num_inference_steps"],
            **{way: min(times[1:]) for way, times in seconds[family].items()},
        }
        for family, pipe in pipes.items()
    }
    for family, row in rows.items():
        print(f"{family}: {row['steps']} steps, " + ", ".join(f"{way} {row[way]:.4f} s" for way in ways), flush=True)
    if config.out is not None:
        report = {
            "what": "seconds an image of 32 px, by family, in one call of so many images",
            "command": f"python benchmarks/seconds_an_image.py --images {config.images} --repeats {config.repeats}",
            "machine": {
                "cpu": cpu_name(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "precision": precision,
            },
            "families": rows,
        }
        write_json(config.out, report)


if __name__ == "__main__":
    main(tyro.cli(Config))
