"""Stand-ins for frozen models and helpers that the cache's tests share."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from rcg.data.cache import CacheField, build_cache
from rcg.data.sources import ImageSource


class Encoder(nn.Module):
    """Means over the picture and over its left half, weighted; can be slow."""

    def __init__(self, scale: float = 1.0, pause: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.pause = pause

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        assert images.dtype == torch.float32
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        return torch.cat([images.mean((2, 3)), images[..., : images.shape[3] // 2].mean((2, 3))], 1) * self.scale


class Tokenizer(nn.Module):
    """Grey levels of 2×2 blocks."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.avg_pool2d(images.mean(1), 2) * 1000).long()


def representations(**options: Any) -> dict[str, CacheField]:
    model = Encoder(**options)
    return {"representations": CacheField(model, model)}


def tokens() -> dict[str, CacheField]:
    model = Tokenizer()
    return {"tokens": CacheField(model, model.encode, "uint16")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make(source: ImageSource, folder: Path, fields: dict[str, CacheField] | None = None, **options: Any) -> None:
    defaults: dict[str, Any] = {"size": 8, "views": 4, "shard_size": 5, "batch_size": 6, "progress": False}
    build_cache(source, folder, fields or representations() | tokens(), **{**defaults, **options})


def make_in_child(*args: Any, **options: Any) -> None:
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked children: one that dies holding it locks us out
    make(*args, **options)
