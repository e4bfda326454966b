"""Make the package data of an embedded set of photographs (`rcg/data/embedded/clothing.npz`) from folders of images.

    python benchmarks/pack_photographs.py --images FOLDER --out rcg/data/embedded/clothing.npz

FOLDER holds SPLIT/CLASS/… (as the repository clothing-dataset-small does: train, validation, test). Each picture is cut to
its central square, resized and stored as WebP; the order is a random one that is always the same, so that the first n are
a fair draw. Prints what the encoding costs. `clothing.md` beside the file says where the photographs come from.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from rcg.data.embedded.pack import write_pack
from rcg.data.images import Framing
from rcg.data.sources import FolderSource


@dataclass
class Config:
    """What to pack."""

    images: Path
    """Folder of SPLIT/CLASS/… with images."""
    out: Path
    """The .npz to write."""
    size: int = 64
    """Side of the squares, in pixels."""
    quality: int = 75
    """Of WebP, 0 to 100."""


def main(config: Config) -> None:
    """Write the file and print its size and fidelity."""
    splits = sorted(p.name for p in config.images.iterdir() if p.is_dir())
    sources = {split: FolderSource(config.images / split, progress=False) for split in splits}
    classes = sorted({name for source in sources.values() for name in source.class_names})
    framing = Framing(config.size)
    files, labels, parts, errors = [], [], [], []
    for split, source in sources.items():
        if source.labels is None:
            raise SystemExit(f"{config.images / split} has no folders of classes")
        for i in range(len(source)):
            square = framing.base(source.image(i))
            buffer = io.BytesIO()
            Image.fromarray(square).save(buffer, "WEBP", quality=config.quality, method=6)
            kept = np.asarray(Image.open(buffer).convert("RGB"), np.float32)
            errors.append(float(((kept - square) ** 2).mean()))
            files.append(buffer.getvalue())
            labels.append(classes.index(source.class_names[source.labels[i]]))
            parts.append(split)
    order = np.random.default_rng(0).permutation(len(files))
    write_pack(
        config.out,
        [files[i] for i in order],
        [labels[i] for i in order],
        classes,
        [parts[i] for i in order],
        config.size,
    )
    mib = config.out.stat().st_size / 2**20
    psnr = 10 * np.log10(255**2 / np.mean(errors))
    counts = ", ".join(f"{parts.count(split)} {split}" for split in splits)
    print(f"{len(files)} photographs ({counts}) of {len(classes)} classes: {mib:.2f} MiB, PSNR {psnr:.1f} dB")


if __name__ == "__main__":
    main(tyro.cli(Config))
