"""What inversion does: the loss under learned conditions and under those of other images, reconstructions, variations.

    python benchmarks/inversion_look.py --tables OUT/encoder OUT/zero --out OUT

Reads tables of rcg-invert on the same images with one RCG pipeline. Writes OUT/inversion.json and OUT/inversion.png: rows of
originals, reconstructions from the encoder's representation and from each table's condition (no guidance), and variations
of the first table (noise 0.2; 0.3 of a partner).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from features import open_named
from PIL import Image
from torch import Tensor

from rcg.core.files import write_json
from rcg.core.hardware import pick_bf16
from rcg.core.pictures import make_grid, to_pil, to_uint8
from rcg.core.rng import derive_seed
from rcg.data.cache import Cache
from rcg.eval.features import extract
from rcg.inversion.choices import Chooser, Place, Variation
from rcg.inversion.invert import blocks_of
from rcg.inversion.opening import open_frozen
from rcg.inversion.table import ConditionTable

UNSEEN = 10**7
"""First of the steps whose times and noise judge: no inversion has come so far."""


@dataclass
class Config:
    """What to look at."""

    tables: tuple[Path, ...]
    """Folders of rcg-invert; the first has cached codes and representations."""
    out: Path
    """Folder for the results."""
    model: str = "rcg/cifar10"
    """The pipeline that was inverted."""
    extractor: str = "encoder:rcg/cifar10"
    """Whose features measure likeness; inception-768 is independent of the model."""
    extractor_weights: Path | None = None
    """Its weights."""
    draws: int = 16
    """Draws of times and noise by which the loss is judged."""
    shown: int = 12
    """Images on the grid."""
    results: Path | None = None
    """Also write the figures here."""


def likeness(originals: Tensor, made: Tensor, extractor: Any) -> dict[str, float]:
    """Distances of reconstructions [N, 3, S, S] from their own originals and from the other ones."""
    found = {}
    pixels = [x.float().flatten(1) / 255 for x in (originals, made)]
    features = [torch.from_numpy(extract(extractor, [x]).features) for x in (originals, made)]
    for name, (a, b) in {"pixels": pixels, "features": features}.items():
        distances = torch.cdist(b.double(), a.double())  # [reconstruction, original]
        own = distances.diagonal()
        others = distances[~torch.eye(len(a), dtype=torch.bool)].reshape(len(a), -1)
        found |= {
            f"{name}_own": float(own.mean()),
            f"{name}_others": float(others.mean()),
            f"{name}_own_is_nearest": float((own < others.min(dim=1).values).double().mean()),
            f"{name}_own_nearer_than_other": float((own[:, None] < others).double().mean()),
        }
    return found


def main(config: Config) -> None:
    """Measure, draw, write."""
    tables = [ConditionTable(folder) for folder in config.tables]
    generator: Any = open_frozen(config.model)
    device = torch.device("cpu")
    generator.prepare(device, pick_bf16("auto", device), False)
    assert all(t.manifest["model_hash"] == generator.identity() for t in tables), "tables of another model"
    count = len(tables[0])
    codes = Cache(config.tables[0] / "codes")
    rows = np.arange(count)
    batch = codes.batch(rows, np.zeros(count, np.uint64))
    originals = batch["images"]
    conditions = {"encoder": batch["representations"].float()}
    for folder, table in zip(config.tables, tables, strict=True):
        conditions[f"inverted from {table.manifest['settings']['beginning']}"] = torch.from_numpy(
            np.array(table.conditions)
        )
        print(folder, "steps", sorted(set(table.steps.tolist())))
    conditions["zero"] = torch.zeros_like(conditions["encoder"])

    def loss(which: Tensor) -> float:
        total = 0.0
        with torch.no_grad():
            for block in blocks_of(count, 64):
                part = {k: v[block] for k, v in batch.items()}
                seeds = [derive_seed(99, row) for row in range(block.start, block.stop)]
                for step in range(config.draws):
                    total += float(generator.loss(part, which[block], seeds, UNSEEN + step))
        return total / (count * config.draws)

    extractor = open_named(config.extractor, config.extractor_weights)
    report: dict[str, Any] = {"model": config.model, "images": count, "extractor": config.extractor, "conditions": {}}
    drawn: dict[str, Tensor] = {}
    for name, which in conditions.items():
        seeds = [derive_seed(7, row) for row in range(count)]
        drawn[name] = to_uint8(torch.cat([
            generator.draw(which[b], [1.0] * len(which[b]), seeds[b]) for b in blocks_of(count, 64)
        ]))  # fmt: skip
        report["conditions"][name] = {
            "loss": loss(which),
            "loss_with_another_images": loss(which.roll(1, dims=0)),
            "length": float(which.norm(dim=1).mean()),
            **likeness(originals, drawn[name], extractor),
        }
        print(name, json.dumps({k: round(v, 4) for k, v in report["conditions"][name].items()}))
    for folder in config.tables:
        lines = [json.loads(line) for line in (folder / "log-00.jsonl").read_text().splitlines()]
        means: dict[int, list[float]] = {}
        for line in lines:
            means.setdefault(line["step"], []).append(line["loss"])
        report.setdefault("training_loss", {})[folder.name] = {str(k): float(np.mean(v)) for k, v in means.items()}
    write_json(config.out / "inversion.json", report)
    if config.results is not None:
        write_json(config.results, report)
    labels = tables[0].labels
    shown = (
        [int(np.flatnonzero(labels == c % 10)[c // 10]) for c in range(config.shown)]
        if labels is not None
        else [*rows[: config.shown]]
    )
    sheet: list[Image.Image] = to_pil(originals[shown])
    for name in [n for n in conditions if n != "zero"]:
        sheet += to_pil(drawn[name][shown])
    for noise, interpolation in ((0.2, 0.0), (0.0, 0.3)):
        chooser = Chooser(count, labels, Variation((noise,), (interpolation,)), 0)
        choices = []
        for row in shown:
            label = None if labels is None else int(labels[row])
            position = int(np.flatnonzero(chooser.of_class[label] == row)[0])
            choices.append(chooser.choose(Place(label, position)))
        made = chooser.conditions(tables[0].conditions, choices)
        sheet += to_pil(generator.draw(made, [1.0] * len(made), [c.image_seed for c in choices]))
    big = [image.resize((64, 64), Image.Resampling.NEAREST) for image in sheet]
    make_grid(big, columns=len(shown)).save(config.out / "inversion.png")
    print(f"The grid is {config.out / 'inversion.png'}.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
