"""How much of an encoder's training pass `rcg.encoders.quick.SmallMaps` saves: the same passes with it and without, in turns.

    python benchmarks/small_maps.py --encoder rcg/cifar10 --batch-size 256 --out benchmarks/results/small_maps.json

A pass is forward and backward through the backbone in bf16, one thread, images of noise.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from machine import cpu_name

from rcg.core.components import load_any
from rcg.core.files import write_json
from rcg.encoders.quick import SmallMaps
from rcg.encoders.ssl_encoder import SSLEncoder


@dataclass
class Config:
    """What to time."""

    encoder: str = "rcg/cifar10"
    """Folder of an encoder or of its pipeline, or name in the box."""
    batch_size: int = 256
    """Images of a pass."""
    repeats: int = 5
    """Passes of each kind; the quickest counts."""
    out: Path | None = None
    """Where the figures go."""


def main(config: Config) -> None:
    """Print and write seconds and their ratio."""
    torch.set_num_threads(1)
    backbone = load_any((SSLEncoder,), config.encoder).backbone.train().to(memory_format=torch.channels_last)
    side = load_any((SSLEncoder,), config.encoder).config.image_size
    images = torch.randn(config.batch_size, 3, side, side).to(memory_format=torch.channels_last)
    seconds: dict[str, dict[str, list[float]]] = {way: {"forward": [], "backward": []} for way in ("plain", "quick")}
    for _ in range(config.repeats + 1):
        for way, found in seconds.items():
            backbone.zero_grad()
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16), SmallMaps() if way == "quick" else nullcontext():
                features = backbone(images)
            middle = time.perf_counter()
            features.float().square().mean().backward()
            found["forward"].append(middle - start)
            found["backward"].append(time.perf_counter() - middle)
    best = {way: {part: min(times[1:]) for part, times in found.items()} for way, found in seconds.items()}
    whole = {way: sum(parts.values()) for way, parts in best.items()}
    report = {
        "what": "seconds of a training pass in bf16 through an encoder's backbone, without and with SmallMaps",
        "command": f"python benchmarks/small_maps.py --encoder {config.encoder} --batch-size {config.batch_size}",
        "machine": {"cpu": cpu_name(), "threads": 1, "torch": torch.__version__},
        "seconds": best,
        "ratio": whole["plain"] / whole["quick"],
    }
    for way, parts in best.items():
        print(f"{way}: forward {parts['forward']:.3f} s, backward {parts['backward']:.3f} s")
    print(f"ratio {report['ratio']:.2f}")
    if config.out is not None:
        write_json(config.out, report)


if __name__ == "__main__":
    main(tyro.cli(Config))
