"""The reference's ADM at a tiny size: its files, and what it computed (made by tests/golden/make_adm.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.seeded import normal, read_shapes, seeded

FOLDER = Path(__file__).parents[2] / "golden"
HERE = FOLDER / "image_gen_adm"
SIZE = 16
SCALE = 2.5
STEPS = {"ancestral": 6, "ddim": 5}


@cache
def state(condition: str = "representation") -> dict[str, torch.Tensor]:
    """The weights of a file."""
    return seeded(read_shapes(HERE / f"keys_{condition}.txt"))


def contents(condition: str = "representation", **extra: Any) -> dict[str, Any]:
    """A file as the reference writes it: the moving average is what its values were computed with."""
    raw = {name: tensor + 1 for name, tensor in state(condition).items()}
    return {"model": raw, "model_ema": dict(state(condition)), "optimizer": {}, "epoch": 3, "scaler": {}, **extra}


def value(name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(HERE / "values.npz")[name])


def given(condition: str) -> dict[str, torch.Tensor]:
    """The condition that the values were computed with, as arguments of the model."""
    if condition == "representation":
        return {"representations": normal("rep", 2, 12)}
    return {"class_labels": torch.tensor([4, 1])} if condition == "class" else {}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


class RecordedNoise:
    """What a `Noise` of two samples gives, from the numbers that the reference was given."""

    device = torch.device("cpu")

    def __len__(self) -> int:
        return 2

    def normal(self, draw: int, count: int) -> torch.Tensor:
        return normal(f"draw{draw}", 2, count)
