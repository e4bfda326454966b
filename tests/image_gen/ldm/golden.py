"""The reference's LDM at a tiny size: its files, and what it computed (made by tests/golden/make_ldm.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcg.image_gen.diffusion.gaussian import betas_of
from rcg.image_gen.ldm.generator import default_scheduler
from tests.golden.seeded import normal, read_shapes, seeded

FOLDER = Path(__file__).parents[2] / "golden"
HERE = FOLDER / "image_gen_ldm"
SIZE = 16
SCALE = 2.5
STEPS = 5
LEARNT = ("model.", "model_ema.diffusion", "first_stage_model.", "cond_stage_model.")
ENCODER = {"pretrained_encoder.cls_token": torch.zeros(1, 1, 8)}
"""Stands for the whole encoder that a file carries."""


@cache
def state(condition: str = "representation") -> dict[str, torch.Tensor]:
    """The weights of a file."""
    shapes = read_shapes(HERE / "keys.txt")
    if condition == "none":
        shapes["cond_stage_model.embedding.weight"] = (1, 12)
    schedule = {name: torch.zeros(shape) for name, shape in shapes.items() if not name.startswith(LEARNT)}
    schedule |= {"alphas_cumprod": torch.cumprod(1 - betas_of(default_scheduler()), 0).float()}
    return seeded(shapes, [name for name in shapes if name.startswith(LEARNT)]) | schedule


def contents(condition: str = "representation", **extra: Any) -> dict[str, Any]:
    """A file as the reference writes it."""
    counted = {"model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    carried = ENCODER if condition == "representation" else {}
    return {"model": state(condition) | counted | carried, "optimizer": {}, "epoch": 3, "scaler": {}, **extra}


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
