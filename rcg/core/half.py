"""Weights in half the bytes: float16 on disk, float32 again when they are loaded. A leaf."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rcg.core.component import align_file
from rcg.core.errors import UserError
from rcg.core.files import atomic_file, write_json


def halve_weights(folder: Path) -> None:
    """Rewrite every .safetensors file below `folder` with its float32 matrices (two or more dimensions) as float16.

    Vectors, which are biases, norms and statistics, stay as they are: they are small, and some have a wide range. A model
    that is loaded without a dtype computes in float32 with the rounded weights.

    Args:
        folder: of saved models; sharded ones, too.

    Raises:
        UserError: a weight that float16 cannot hold (above 65504).
    """
    for file in sorted(folder.rglob("*.safetensors")):
        weights = {name: _halved(tensor, name, file) for name, tensor in load_file(file).items()}
        with atomic_file(file) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        align_file(file)
    for file in sorted(folder.rglob("*.safetensors.index.json")):  # of a sharded model: its size in bytes
        index = json.loads(file.read_text())
        shards = {name: load_file(file.parent / name) for name in set(index["weight_map"].values())}
        index["metadata"]["total_size"] = sum(t.nbytes for shard in shards.values() for t in shard.values())
        write_json(file, index)


def _halved(tensor: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    if tensor.dtype != torch.float32 or tensor.ndim < 2:
        return tensor
    half = tensor.half()
    if not torch.equal(torch.isfinite(half), torch.isfinite(tensor)):
        raise UserError(f"{name} in {file.parent.name} is too large for float16; save the model in full instead.")
    return half
