"""The reference's numbers for tiny DiTs (width 16, 2 blocks, 2 heads, 6-d), see `tests/golden/make_dit.py`."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcg.image_gen.latent_dit.transformer import DiT
from rcg.published.dit import convert_dit

FOLDER = Path(__file__).parents[2] / "golden" / "image_gen_dit"
MODELS = ("representation", "class", "none", "fixed")
"""By condition; "fixed" has none and does not choose its variance."""
GUIDED = ("representation", "class")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def tensor(name: str, key: str) -> torch.Tensor:
    return torch.from_numpy(arrays(name)[key].copy())


def official(name: str) -> dict[str, Any]:
    """A file as the reference writes it; its raw weights are others than the averaged ones."""
    weights = {k.removeprefix("weights/"): v for k, v in arrays(name).items() if k.startswith("weights/")}
    state = {k: torch.from_numpy(v.copy()).float() for k, v in weights.items()}
    raw = {k: v if k == "pos_embed" else v + 1 for k, v in state.items()}
    return {"model": raw, "model_ema": state, "optimizer": {}, "epoch": 7, "args": argparse.Namespace(lr=0.1)}


def model(name: str) -> DiT:
    return convert_dit(official(name), "ema", "the golden file", num_heads=2).model


def given(name: str, count: int = 4) -> dict[str, torch.Tensor]:
    """The condition as arguments of the model."""
    if name == "representation":
        return {"representations": tensor("common", "reps")[:count]}
    return {"class_labels": tensor("common", "labels")[:count]} if name == "class" else {}


def dropped(name: str) -> torch.Tensor | None:
    return tensor("common", "drops") < 0.1 if name in GUIDED else None


class Recorded:
    """The reference's random numbers in the place of a `Noise`."""

    def __len__(self) -> int:
        return arrays("common")["noise"].shape[1]

    def normal(self, draw: int, count: int) -> torch.Tensor:
        return tensor("common", "noise")[draw].reshape(len(self), count)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
