"""Small WebDataset shards for tests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 16) -> bytes:
    """A PNG of noise around a colour of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (size, size, 3)) + rng.integers(0, 190, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A plain tar file with these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, captions: list[str], count: int = 3, per_shard: int = 4, classes: bool = False) -> Path:
    """Shards with `count` images of each caption, as rcg-synthesize lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(captions), per_shard):
        members: list[tuple[str, bytes]] = []
        for i, caption in enumerate(captions[start : start + per_shard], start=start):
            said = {"caption": caption} | ({"class": caption.split()[-1]} if classes else {})
            members.append((f"{i:09d}.json", json.dumps(said).encode()))
            members += [(f"{i:09d}.{j}.png", picture(100 * i + j)) for j in range(count)]
        write_tar(folder / f"{start // per_shard:06d}.tar", members)
    return folder
