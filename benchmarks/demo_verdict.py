"""What a classifier sees in the demo's pictures: trained on the labels of `clothing`, which the demo itself never looks at.

    python benchmarks/demo_verdict.py --demo runs/demo --out benchmarks/results/demo.json

The classifier is the encoder in the box with a linear layer, all of it fine-tuned on the training photographs, so that it
knows small pictures before it begins; the validation photographs choose the epoch, the test photographs judge it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from recognised import CONFIDENT, summary
from torch import Tensor, nn

from rcg import SSLEncoder
from rcg.core.components import load_model
from rcg.core.files import write_json
from rcg.core.shipped import DEFAULT
from rcg.data.images import to_unit
from rcg.data.sources import open_source
from rcg.eval.images import ImageSet


@dataclass
class Config:
    """Which pictures, and how long the classifier learns."""

    demo: Path
    """The demo's folder; each folder images-… in it is judged."""
    out: Path
    """File for the figures (JSON)."""
    epochs: int = 40
    """Passes over the training photographs."""
    seed: int = 0
    """Of the classifier."""


class Classifier(nn.Module):
    """Images in [0, 1] → logits."""

    def __init__(self, encoder: SSLEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.linear = nn.Linear(encoder.feature_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 32, 32] → [B, classes]."""
        return self.linear(self.encoder.features(images))


def pictures(spec: str) -> tuple[Tensor, np.ndarray | None]:
    """All pictures of a source but sheets of them, uint8 [N, 3, 32, 32], and their labels."""
    images = ImageSet(open_source(spec), spec, image_size=32)
    labels = images.source.labels
    return torch.cat(list(images.batches(250))), None if labels is None else labels[images.indices]


def moved(images: Tensor) -> Tensor:
    """The same, mirrored at random and shifted by up to four pixels."""
    flipped = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))
    padded = F.pad(flipped, (4, 4, 4, 4), mode="reflect")
    rows, columns = torch.randint(9, (2, len(images)))
    return torch.stack([p[:, r : r + 32, c : c + 32] for p, r, c in zip(padded, rows, columns, strict=True)])


@torch.no_grad()
def confidences(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each picture, and whose it is."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model(to_unit(some)).float() for some in images.split(250)])
    return logits.softmax(1).max(1)


def train(config: Config) -> Classifier:
    """The classifier of the epoch that knows the validation photographs best."""
    torch.manual_seed(config.seed)
    images, labels = pictures("clothing:split=train,size=32")
    others, truth = pictures("clothing:split=validation,size=32")
    assert labels is not None
    assert truth is not None
    model = Classifier(load_model(SSLEncoder, DEFAULT), int(labels.max()) + 1)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = config.epochs * (len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    best, kept = 0.0, copy.deepcopy(model)
    for epoch in range(config.epochs):
        model.train()
        for some in torch.randperm(len(images)).split(128)[: len(images) // 128]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(moved(to_unit(images[some])))
            F.cross_entropy(logits.float(), torch.from_numpy(labels)[some], label_smoothing=0.0).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        right = float((confidences(model, others)[1] == torch.from_numpy(truth)).float().mean())
        print(f"epoch {epoch + 1}: {right:.1%} of the validation photographs", flush=True)
        if right >= best:
            best, kept = right, copy.deepcopy(model)
    return kept


def main(config: Config) -> None:
    """Print a line for each folder."""
    model = train(config)
    test, truth = pictures("clothing:split=test,size=32")
    assert truth is not None
    sure, named = confidences(model, test)
    figures: dict[str, dict[str, float]] = {
        "real": {
            "confident": float((sure > CONFIDENT).float().mean()),
            "right": float((named == torch.from_numpy(truth)).float().mean()),
        }
    }
    for folder in sorted(config.demo.glob("images-*")):
        figures[folder.name] = summary(*confidences(model, pictures(str(folder))[0]))
    for name, found in figures.items():
        print(name, {k: round(v, 3) for k, v in found.items()})
    write_json(config.out, figures)


if __name__ == "__main__":
    main(tyro.cli(Config))
