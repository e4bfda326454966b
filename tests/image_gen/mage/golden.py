"""The reference's numbers for a tiny MAGE (width 32, 3 + 2 blocks, 4 and 2 heads, 24-d), and the model they belong to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from rcg.image_gen.mage.transformer import MageTransformer

FOLDER = Path(__file__).parents[2] / "golden" / "image_gen_mage"
CONFIG: dict[str, Any] = {
    "vocab_size": 2025, "slot_token_id": 1100, "width": 32, "depth": 3, "num_heads": 4, "decoder_depth": 2,
    "decoder_num_heads": 2, "representation_dim": 24, "dropout": 0.0,
}  # fmt: skip


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def tensor(name: str, key: str) -> torch.Tensor:
    """One array; ids, which are stored as int16, become int64."""
    array = arrays(name)[key].copy()
    return torch.from_numpy(array.astype(np.int64) if array.dtype == np.int16 else array)


def state() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "weights.safetensors")


def model() -> MageTransformer:
    mage = MageTransformer(**CONFIG)
    mage.load_state_dict(state())
    return mage.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a - b‖ / ‖b‖."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
