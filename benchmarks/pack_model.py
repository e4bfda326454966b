"""Put a finished pipeline into the box, `rcg/box`, from which it is installed with the library. For maintainers.

    python benchmarks/pack_model.py --model runs/model --name rcg/cifar10 --dataset "CIFAR-10 (Krizhevsky 2009)" \
        --license mit --recipe "sh benchmarks/…" --metrics runs/metrics.json --grid runs/images/grid.png

Weights become float16, in files of at most 16 MiB; README.md is the model card. Refuses what would make the box larger than
48 MiB. Score what is in the box, not what went in: rounding the weights changes them (a little).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rcg import RCGPipeline
from rcg.core.card import CardInfo
from rcg.hub import pack_for_box, read_metrics


@dataclass
class Config:
    """What to pack."""

    model: Path
    """Folder of the pipeline."""
    name: str
    """In the box: rcg/name."""
    dataset: str
    """Name of the training data."""
    license: str
    """Of the weights, as the Hub spells it."""
    recipe: str
    """How the model was trained: commands, or where they are written."""
    metrics: Path
    """JSON with its figures: the report of rcg-eval, or numbers by name."""
    grid: Path
    """PNG with samples."""


def main(config: Config) -> None:
    """Pack, and print what the folder takes."""
    pipe = RCGPipeline.from_pretrained(config.model)
    info = CardInfo(config.dataset, config.license, read_metrics(config.metrics), config.grid, config.recipe)
    folder = pack_for_box(pipe, config.name, info)
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        print(f"{file.stat().st_size / 2**20:8.2f} MiB  {file.relative_to(folder)}")


if __name__ == "__main__":
    main(tyro.cli(Config))
