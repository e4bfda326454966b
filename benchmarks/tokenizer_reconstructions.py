"""Encode and decode images with a tokenizer and save them as PNG: what its reconstruction FID is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from rcg.core.components import load_model
from rcg.core.pictures import to_pil
from rcg.data.images import ImageDataset, to_unit
from rcg.data.sources import open_source
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer


@dataclass
class Config:
    """What to reconstruct."""

    data: str
    """Folder of images."""
    tokenizer: Path
    """Folder of a VQTokenizer."""
    out: Path
    """Folder for the PNG files."""
    num_images: int = 5000
    """Images, drawn at random from the data with seed 0."""
    image_size: int = 32
    """Side in pixels."""


def main(config: Config) -> None:
    """Write `num_images` reconstructions."""
    tokenizer = load_model(VQTokenizer, config.tokenizer)
    data = ImageDataset(open_source(config.data), config.image_size)
    indices = np.random.default_rng(0).permutation(len(data))[: config.num_images]
    config.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(indices), 128):
        part = indices[start : start + 128]
        images = to_unit(data.batch(part, np.zeros(len(part), np.uint64))["images"])
        with torch.inference_mode():
            decoded = tokenizer.decode(tokenizer.encode(images))
        for i, picture in enumerate(to_pil(decoded)):
            picture.save(config.out / f"{start + i:06d}.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
