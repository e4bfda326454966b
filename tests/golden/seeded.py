"""Numbers that are the same wherever they are made: NumPy's legacy generator does not change from version to version.

With them, a reference program's values can be compared without committing its weights.
"""

from __future__ import annotations

import ast
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch


def normal(name: str, *shape: int) -> torch.Tensor:
    """Standard normal float32; another name gives others."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A layer's tensor that keeps the size of what passes: norms near 1, biases near 0, matrices scaled by their inputs."""
    if len(shape) > 1:
        return normal(name, *shape) * float(np.prod(shape[1:])) ** -0.5
    return 0.1 * normal(name, *shape) + (1 if name.endswith("weight") else 0)


def write_shapes(file: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Name, shape and dtype of every tensor, a line each."""
    file.write_text("".join(f"{k}\t{tuple(v.shape)}\t{v.dtype}\n" for k, v in state.items()))


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the floats in such a file."""
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    return {name: ast.literal_eval(shape) for name, shape, dtype in rows if "int" not in dtype}


def seeded(shapes: Mapping[str, tuple[int, ...]], names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """`weight` of each name, or of those of `names`."""
    return {name: weight(name, shapes[name]) for name in (shapes if names is None else names)}
