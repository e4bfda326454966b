"""A part of a folder of images with a folder for each class, as a folder of its own: the same share of each class.

    python benchmarks/subset.py --data TRAIN --out OUT/real-1 --share 0.01

A smaller part is in every larger one of its seed. Files are linked, where that can be, or copied.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from rcg.core.files import atomic_folder
from rcg.data.sources import FolderSource
from rcg.eval.labelled import part_of


@dataclass
class Config:
    """What to take."""

    data: Path
    """Folder with a folder for each class."""
    out: Path
    """Folder to make; nothing is done where it is."""
    share: float | None = None
    """Of each class."""
    each: int | None = None
    """Instead: images of each class."""
    seed: int = 0
    """Of the draw."""


def main(config: Config) -> None:
    """Link or copy them."""
    if config.out.is_dir():
        return
    source = FolderSource(config.data)
    assert source.labels is not None
    there = np.bincount(source.labels).tolist()
    counts = [config.each if config.each is not None else round((config.share or 1) * n) for n in there]
    with atomic_folder(config.out) as folder:
        for row in part_of(source.labels, counts, config.seed):
            file = source.files[row]
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.folder / file, folder / file)
            except OSError:
                shutil.copyfile(source.folder / file, folder / file)
    print(f"{sum(counts)} images are in {config.out}.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
