"""Make real images anew and save them as PNG: by a tokenizer and back, or by a generator from their representations, in which no
RDM had a part. What a reconstruction FID is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from rcg import RCGPipeline
from rcg.core.components import load_any
from rcg.core.pictures import to_pil
from rcg.core.rng import sample_generators
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.image_gen.families import TOKENIZERS
from rcg.image_gen.tokenizers.codec import codec_of

AT_ONCE = 128


@dataclass
class Config:
    """What to make anew, and by what: a tokenizer, or a generator and its encoder."""

    data: str
    """Folder of images."""
    out: Path
    """Folder for the PNG files."""
    tokenizer: Path | None = None
    """Folder of a tokenizer or of an autoencoder of diffusers, or a name in the box."""
    generator: Path | None = None
    """Folder of an image generator that needs no tokenizer."""
    encoder: Path | None = None
    """Folder of the encoder whose representations it was trained on."""
    guidance_scale: float = 1.5
    """Of the generator."""
    num_images: int = 5000
    """Images, drawn at random from the data with seed 0."""
    image_size: int = 32
    """Side in pixels."""


def maker(config: Config) -> Callable[[Tensor, int], list[Image.Image]]:
    """Images [B, 3, S, S] in [0, 1], and the number of the first one → new ones."""
    if config.tokenizer is not None:
        codec = codec_of(load_any(TOKENIZERS, config.tokenizer).eval())
        return lambda images, _: to_pil(codec.decode(codec.encode(images)))
    if config.generator is None or config.encoder is None:
        raise SystemExit("Give --tokenizer, or --generator and --encoder.")
    pipe: Any = RCGPipeline.from_stages(config.generator, encoder=config.encoder)
    pipe.set_progress_bar_config(disable=True)

    def draw(images: Tensor, first: int) -> list[Image.Image]:
        noise = sample_generators(0, first, len(images))
        drawn: list[Image.Image] = pipe.reconstruct(
            images, generator=noise, guidance_scale=config.guidance_scale
        ).images
        return drawn

    return draw


def main(config: Config) -> None:
    """Write `num_images` pictures."""
    make = maker(config)
    data = ImageDataset(open_source(config.data), config.image_size)
    indices = np.random.default_rng(0).permutation(len(data))[: config.num_images]
    config.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(indices), AT_ONCE):
        part = indices[start : start + AT_ONCE]
        images = to_unit(data.batch(part, np.zeros(len(part), np.uint64))["images"])
        with torch.inference_mode():
            made = make(images, start)
        for i, picture in enumerate(made):
            picture.save(config.out / f"{start + i:06d}.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
