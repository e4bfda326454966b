"""How a cache lies on the disk: the manifest, the shards, their files. `rcg.data.cache` says what is in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcg.core.errors import UserError

FORMAT = "rcg-cache"
VERSION = 1
HEADER = 192
"""Bytes before the data in each .npy file."""


def is_cache(path: str | Path) -> bool:
    """Whether `path` is a folder with a cache's manifest in it; the cache may be incomplete."""
    try:
        manifest = json.loads((Path(path) / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache.

    Raises:
        UserError: `folder` is no cache, or one of a later version of this library.
    """
    if not is_cache(folder):
        raise UserError(f"{folder} is not a cache (it has no manifest.json of one); make one with rcg-cache.")
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    if manifest["version"] != VERSION:
        raise UserError(
            f"the cache {folder} has format version {manifest['version']}, but this version of rcg reads {VERSION}; "
            "make it anew with rcg-cache."
        )
    return manifest


def shard_folder(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{shard:05d}"


def shard_range(manifest: dict[str, Any], shard: int) -> range:
    """The images of a shard."""
    size, count = manifest["shard_size"], manifest["source"]["count"]
    return range(shard * size, min(count, (shard + 1) * size))


def shard_files(manifest: dict[str, Any], shard: int, fields: Sequence[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of each file, by its name without ending, that a complete shard holds."""
    n = len(shard_range(manifest, shard))
    files: dict[str, tuple[tuple[int, ...], str]] = {"indices": ((n,), "int64")}
    if manifest["source"]["labelled"]:
        files["labels"] = ((n,), "int64")
    for name in fields:
        field = manifest["fields"][name]
        files[name] = ((n, manifest["transform"]["views"], *field["shape"]), field["dtype"])
    return files


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file whose data always begins at byte `HEADER`, whichever numpy writes or reads it."""
    described = f"{{'descr': {array.dtype.str!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    header = described.encode().ljust(HEADER - 11) + b"\n"
    assert len(header) == HEADER - 10
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        np.ascontiguousarray(array).tofile(file)


def file_state(path: Path, shape: tuple[int, ...], dtype: str) -> str:
    """`complete`, `missing` or `damaged` (of another size than such an array has)."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    right = HEADER + math.prod(shape) * np.dtype(dtype).itemsize
    return "complete" if size == right else "damaged"
