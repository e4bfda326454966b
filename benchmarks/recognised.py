"""What a CIFAR-10 classifier sees in pictures: how many it names with confidence, and how evenly over the classes.

    python benchmarks/recognised.py --weights RESNET56.th --images FOLDER [FOLDER …] --out verdict.json

The classifier is the ResNet-56 of "Deep Residual Learning" (arXiv 1512.03385, section 4.2) in the layout of the public
CIFAR weights: 16, 32, 64 channels, nine blocks each, shortcuts that subsample and pad with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from rcg.core.files import write_json
from rcg.data.images import to_unit
from rcg.data.sources import open_source
from rcg.eval.images import ImageSet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIDENT = 0.9


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grow = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if self.grow else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, S, S] → [B, outputs, S or S/2, S or S/2]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow, self.grow)) if self.grow else x
        return F.relu(y + shortcut)


class ResNet56(nn.Module):
    """Images, standardised, [B, 3, 32, 32] → logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            blocks = [Block(inputs if k == 0 else outputs, outputs) for k in range(9)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = F.relu(self.bn1(self.conv1(x)))
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
        return self.linear(x.mean((2, 3)))


@dataclass
class Config:
    """Which pictures."""

    weights: Path
    """The classifier: a checkpoint with `state_dict`, keys `module.…`."""
    images: Annotated[list[str], tyro.conf.arg(metavar="FOLDER …")]
    """Folders of pictures of 32 px."""
    limit: int | None = None
    """Pictures of each folder, drawn at random."""
    out: Path | None = None
    """File for the figures (JSON)."""


def summary(confidence: Tensor, named: Tensor) -> dict[str, float]:
    """Count, share of pictures named with confidence, and entropy of the named of ten classes (1: even)."""
    shares = named.bincount(minlength=10) / len(named)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum() / np.log(10)
    sure = (confidence > CONFIDENT).float().mean()
    return {"count": len(named), "confident": float(sure), "evenness": float(entropy)}


@torch.inference_mode()
def verdict(model: nn.Module, images: ImageSet) -> dict[str, float]:
    """The summary of pictures, and each class's share."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    parts = [model((to_unit(batch) - mean) / std).softmax(1) for batch in images.batches(256)]
    confidence, named = torch.cat(parts).max(1)
    shares = named.bincount(minlength=10) / len(named)
    return summary(confidence, named) | {name: float(share) for name, share in zip(CLASSES, shares, strict=True)}


def main(config: Config) -> None:
    """Print a line for each folder."""
    state = torch.load(config.weights, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet56().eval()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    found = {}
    for folder in config.images:
        figures = found[Path(folder).name] = verdict(model, ImageSet(open_source(folder), folder, limit=config.limit))
        print(f"{folder}: {figures['count']} pictures, {figures['confident']:.1%} named with more than {CONFIDENT:.0%} "
              f"confidence, evenness {figures['evenness']:.3f}")  # fmt: skip
    if config.out is not None:
        write_json(config.out, found)


if __name__ == "__main__":
    main(tyro.cli(Config))
