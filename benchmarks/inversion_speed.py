"""Inversion by rows against a full table: image-steps a second, and memory, at 1,000 and 50,000 images.

    python benchmarks/inversion_speed.py --out benchmarks/results/inversion_speed.json

The full table is what the reference program does: a linear layer as wide as there are images, fed with one-hot vectors, all
of whose weights have gradients and Adam's moments at every step. Ours takes rows of a mapped table, trains them for a turn
and puts them back (`rcg.inversion.invert`); writing to the disk is in its time. Both compute the same loss of the same frozen
generator, and are timed in turns within one process; memory is that of processes of their own, above what they had before.

Cells: the generator in the box (a condition of 256 numbers), and the handling alone, without a generator, of conditions as
wide as Stable Diffusion's (5 × 768 numbers).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from machine import cpu_name, peak_mib
from torch import Tensor

from rcg.core.files import write_json
from rcg.core.hardware import pick_bf16
from rcg.core.rng import derive_seed
from rcg.inversion.invert import _Run, blocks_of
from rcg.inversion.opening import open_frozen
from rcg.inversion.settings import Inversion
from rcg.inversion.table import ConditionTable

CPU = torch.device("cpu")
Way = Literal["rows", "full"]
Kind = Literal["box", "handling"]


@dataclass
class Config:
    """What to measure."""

    out: Path | None = None
    """Write the figures here."""
    counts: tuple[int, ...] = (1000, 50_000)
    """Images."""
    batch_size: int = 50
    """Images in a step."""
    turn: int = 20
    """Steps of a turn by rows (rcg-invert's default is 100, which favours rows); a full table is timed for a quarter of them."""
    rounds: int = 3
    """Turns of each way, one after the other."""
    memory_of: tuple[str, str, int] | None = None
    """For the processes that measure memory: kind, way, images."""


class Nothing:
    """No generator: conditions of Stable Diffusion's shape, and a loss that costs next to nothing."""

    shape = (5, 768)

    def start(self, batch: Any, seeds: list[int]) -> Tensor:
        """Zeros."""
        return torch.zeros(len(seeds), *self.shape)

    def loss(self, batch: Any, conditions: Tensor, seeds: list[int], step: int) -> Tensor:
        """A squared distance."""
        return (conditions - 1).square().sum()


class Codes:
    """Images that were never encoded, any number of them."""

    def batch(self, rows: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        """Noise."""
        g = torch.Generator().manual_seed(int(rows[0]))
        images = torch.randint(0, 256, (len(rows), 3, 32, 32), generator=g, dtype=torch.uint8)
        return {"images": images, "representations": torch.randn(len(rows), 256, generator=g)}


def generator_of(kind: Kind) -> Any:
    """The frozen generator of a cell."""
    if kind == "handling":
        return Nothing()
    made = open_frozen("rcg/cifar10")
    made.prepare(CPU, pick_bf16("auto", CPU), False)
    return made


def by_rows(generator: Any, count: int, config: Config, folder: Path) -> Callable[[int], None]:
    """A function that does one turn of a block by rows."""
    manifest: Any = {
        "format": "rcg-inversion", "version": 1, "kind": "rcg", "model": "x", "model_hash": "x",
        "shape": list(generator.shape), "count": count, "image_size": 32,
        "source": {"name": "x", "fingerprint": "x"}, "class_names": [],
        "settings": {"lr": 0.01, "betas": [0.9, 0.999], "batch_size": config.batch_size, "seed": 0, "precision": "x"},
    }  # fmt: skip
    table = ConditionTable.create(folder, manifest, [str(i) for i in range(count)], None)
    how = Inversion(batch_size=config.batch_size)
    blocks = list(blocks_of(count, config.batch_size))
    codes: Any = Codes()
    run = _Run(generator, table, codes, how, 0.01, CPU, blocks, folder / "log.jsonl", False, lambda turns: None)
    return lambda turn: run._turn(blocks[turn % len(blocks)], config.turn) and None  # type: ignore[func-returns-value]


def by_full_table(generator: Any, count: int, config: Config) -> Callable[[int], None]:
    """A function that does a quarter as many steps with a linear layer of one-hot vectors."""
    width = int(np.prod(generator.shape))
    layer = torch.nn.Linear(count, width, bias=False)
    torch.nn.init.normal_(layer.weight, std=0.02)
    adam = torch.optim.Adam(layer.parameters(), 0.01)
    codes = Codes()

    def turn(number: int) -> None:
        rows = np.arange(config.batch_size) + number % (count // config.batch_size) * config.batch_size
        batch = codes.batch(rows, rows)
        seeds = [derive_seed(0, 1, int(row)) for row in rows]
        for step in range(max(1, config.turn // 4)):
            hot = torch.zeros(config.batch_size, count)
            hot[torch.arange(config.batch_size), torch.from_numpy(rows)] = 1
            conditions = layer(hot).view(config.batch_size, *generator.shape)
            adam.zero_grad()
            torch.autograd.backward(generator.loss(batch, conditions, seeds, step))
            adam.step()

    return turn


def turn_of(way: Way, generator: Any, count: int, config: Config, folder: Path) -> Callable[[int], None]:
    """One of the two."""
    if way == "rows":
        return by_rows(generator, count, config, folder)
    return by_full_table(generator, count, config)


def memory(kind: Kind, way: Way, count: int, config: Config) -> float:
    """MiB that a process of its own takes for two turns of two steps, above what it had after one step of a short table."""
    words = ["--memory-of", kind, way, str(count), "--batch-size", str(config.batch_size), "--turn", "2"]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(config: Config) -> None:
    """Measure all cells."""
    if config.memory_of is not None:
        kind, way, count = config.memory_of
        generator = generator_of(kind)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            turn_of("rows", generator, config.batch_size, config, Path(folder) / "warm")(0)
            before = peak_mib()
            turn = turn_of(way, generator, count, config, Path(folder) / "t")  # type: ignore[arg-type]
            turn(0)
            turn(1)
        print(peak_mib() - before)
        return
    cells = []
    for kind in ("handling", "box"):
        generator = generator_of(kind)
        for count in config.counts:
            with tempfile.TemporaryDirectory() as folder:
                ways: tuple[Way, Way] = ("rows", "full")
                turns = {way: turn_of(way, generator, count, config, Path(folder) / way) for way in ways}
                seconds: dict[str, list[float]] = {way: [] for way in ways}
                for number in range(config.rounds + 1):
                    for way in ways:
                        begun = time.perf_counter()
                        turns[way](number)
                        if number:  # the first is for warming up
                            seconds[way].append(time.perf_counter() - begun)
                turns.clear()
            steps = {"rows": config.turn, "full": max(1, config.turn // 4)}
            each = {way: [t / steps[way] for t in seconds[way]] for way in ways}
            cell = {
                "generator": kind,
                "numbers": int(np.prod(generator.shape)),
                "images": count,
                "image_steps_per_second": {way: config.batch_size / statistics.median(each[way]) for way in ways},
                "ratio": statistics.median(b / a for a, b in zip(each["rows"], each["full"], strict=True)),
                "memory_mib": {way: memory(kind, way, count, config) for way in ways},
            }
            cells.append(cell)
            print(json.dumps(cell), flush=True)
    report = {
        "cpu": cpu_name(), "threads": torch.get_num_threads(), "batch_size": config.batch_size, "turn": config.turn,
        "rounds": config.rounds, "torch": torch.__version__, "cells": cells,
    }  # fmt: skip
    if config.out is not None:
        write_json(config.out, report)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
