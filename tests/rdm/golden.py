"""The reference's numbers for the tiny RDMs (width 40, 12 blocks, 24-d), and the models that they belong to."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from rcg.published.rdm import Weights, convert_official_rdm
from rcg.rdm.representation_mlp import RepresentationMLP

FOLDER = Path(__file__).parents[1] / "golden" / "rdm"
KINDS = ("uncond", "classcond")


@cache
def arrays(kind: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{kind}.npz") as file:
        return {name: file[name] for name in file.files}


def tensor(kind: str, name: str) -> torch.Tensor:
    return torch.from_numpy(arrays(kind)[name].copy())


def state(kind: str) -> dict[str, torch.Tensor]:
    """The official-format state dict, without the encoder."""
    return load_file(FOLDER / f"{kind}.safetensors")


def model(kind: str, weights: Weights = "ema") -> RepresentationMLP:
    return convert_official_rdm({"model": state(kind)}, weights).model


def labels(kind: str, name: str = "labels") -> torch.Tensor | None:
    """The golden labels, which only the class-conditional model takes."""
    return tensor(kind, name) if kind == "classcond" else None


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a - b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
