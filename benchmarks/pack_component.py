"""Put a single model, such as a tokenizer, into the box, `rcg/box`, beside the pipelines of pack_model.py. For maintainers.

    python benchmarks/pack_component.py --model runs/tokenizer --name rcg/cifar10-tokenizer --card CARD.md

Weights become float16. Score what is in the box, not what went in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rcg.core.components import load_any
from rcg.hub import pack_component_for_box
from rcg.image_gen.families import MODELS, TOKENIZERS


@dataclass
class Config:
    """What to pack."""

    model: Path
    """Folder of a tokenizer, an autoencoder or an image generator."""
    name: str
    """In the box: rcg/name."""
    card: Path
    """Its README.md: data, licence, recipe, figures."""


def main(config: Config) -> None:
    """Pack, and print where it is."""
    model = load_any([*TOKENIZERS, *MODELS], config.model)
    print(pack_component_for_box(model, config.name, config.card.read_text()))


if __name__ == "__main__":
    main(tyro.cli(Config))
