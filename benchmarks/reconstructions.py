"""Draw an image from the representation of each of some real images, and save them as PNG: what a generator makes of conditions
that no RDM had a part in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from rcg import RCGPipeline
from rcg.core.rng import sample_generators
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source


@dataclass
class Config:
    """What to draw."""

    data: str
    """Images, best such that nobody trained on."""
    generator: Path
    """Folder of an image generator (rcg-train-generator)."""
    encoder: Path
    """Folder of the encoder of its condition."""
    out: Path
    """Folder for the PNG files."""
    image_size: int = 32
    """Side in pixels."""
    guidance_scale: float = 1.5
    """Of the generator."""
    num_images: int = 1000
    """Images, drawn at random from the data with seed 0."""


def main(config: Config) -> None:
    """Write `num_images` pictures."""
    pipe = RCGPipeline.from_stages(config.generator, encoder=config.encoder)
    pipe.set_progress_bar_config(disable=True)
    data = ImageDataset(open_source(config.data), config.image_size)
    indices = np.random.default_rng(0).permutation(len(data))[: config.num_images]
    config.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(indices), 250):
        part = indices[start : start + 250]
        images = to_unit(data.batch(part, np.zeros(len(part), np.uint64))["images"])
        noise = sample_generators(0, start, len(part))
        drawn = pipe.reconstruct(images, generator=noise, guidance_scale=config.guidance_scale).images
        for i, picture in enumerate(drawn):
            picture.save(config.out / f"{start + i:06d}.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
