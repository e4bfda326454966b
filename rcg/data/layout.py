"""How a cache lies on the disk: the manifest, the shards, their files. `rcg.data.cache` says what is in them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from rcg.core.errors import UserError
from rcg.core.schema import Count, PositiveShare, Seed, Size, read_json

FORMAT: Literal["rcg-cache"] = "rcg-cache"
VERSION = 1
HEADER = 192
"""Bytes before the data in each .npy file."""
PATIENCE_S = 4 * 3600.0
"""Longer than a shard takes anywhere."""
Dtype = Literal["float32", "float16", "uint8", "uint16", "int32", "int64"]


class Labelled(TypedDict, total=False):
    """What a manifest says of labels that do not follow from the images' names, see `ImageSource.label_digest`."""

    label_digest: str


class Source(Labelled):
    """The images that a cache was made from."""

    name: str
    fingerprint: str
    count: Count
    labelled: bool
    class_names: list[str]
    skipped: list[list[str]]


class Transform(TypedDict):
    """How its views were made, see `rcg.data.images.Framing`."""

    size: Size
    augment: Literal["none", "crop_flip"]
    crop_scale: PositiveShare
    views: Size
    seed: Seed


class Field(TypedDict):
    """What one file of each shard holds, and the model that computed it."""

    model_class: str
    model_hash: str
    precision: Literal["fp32", "bf16"]
    dtype: Dtype
    shape: list[Size]


class Manifest(TypedDict):
    """`manifest.json` of a cache."""

    format: Literal["rcg-cache"]
    version: int
    source: Source
    transform: Transform
    shard_size: Count
    shards: Count
    fields: dict[str, Field]
    commands: dict[str, str | None]


def is_cache(path: str | Path) -> bool:
    """Whether `path` is a folder with a cache's manifest in it; the cache may be incomplete."""
    file = Path(path) / "manifest.json"
    try:
        return file.is_file() and read_json(file).get("format") == FORMAT
    except UserError:
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        UserError: `folder` is no cache, or one of a later version of this library, or its manifest is damaged.
    """
    file = folder / "manifest.json"
    if not is_cache(folder):
        raise UserError(f"{folder} is not a cache (it has no manifest.json of one); make one with rcg-cache.")
    if (version := read_json(file).get("version")) != VERSION:
        raise UserError(
            f"the cache {folder} has format version {version}, but this version of rcg reads {VERSION}; "
            "make it anew with rcg-cache."
        )
    manifest: Manifest = read_json(file, Manifest, "make the cache anew with rcg-cache")
    if manifest["shards"] != (shards := -(-manifest["source"]["count"] // manifest["shard_size"])):
        raise UserError(
            f"{file}: shards is {manifest['shards']}, but {manifest['source']['count']} images in shards of "
            f"{manifest['shard_size']} make {shards}; make the cache anew with rcg-cache."
        )
    return manifest


def shards_at_hand(folder: Path, manifest: Manifest) -> list[int]:
    """The shards whose folders are there, complete or not, in order."""
    numbers = (name.name.removeprefix("shard-") for name in folder.glob("shard-*"))
    return sorted(int(n) for n in numbers if n.isascii() and n.isdigit() and int(n) < manifest["shards"])


def shard_folder(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{shard:05d}"


def shard_range(manifest: Manifest, shard: int) -> range:
    """The images of a shard."""
    size, count = manifest["shard_size"], manifest["source"]["count"]
    return range(shard * size, min(count, (shard + 1) * size))


def shard_files(manifest: Manifest, shard: int, fields: Sequence[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of each file, by its name without ending, that a complete shard holds."""
    n = len(shard_range(manifest, shard))
    files: dict[str, tuple[tuple[int, ...], str]] = {"indices": ((n,), "int64")}
    if manifest["source"]["labelled"]:
        files["labels"] = ((n,), "int64")
    for name in fields:
        field = manifest["fields"][name]
        files[name] = ((n, manifest["transform"]["views"], *field["shape"]), field["dtype"])
    return files


def missing_files(folder: Path, manifest: Manifest, shard: int, fields: Sequence[str]) -> list[str]:
    """The files of a shard, as `shard_files` names them, that are not there whole."""
    files, place = shard_files(manifest, shard, fields), shard_folder(folder, shard)
    return [name for name, form in files.items() if file_state(place / f"{name}.npy", *form) != "complete"]


def images_at_hand(folder: Path) -> int:
    """Images of which a cache, finished or not, holds all fields; 0 where there is none."""
    if not is_cache(folder):
        return 0
    manifest = read_manifest(folder)
    whole = [
        n for n in shards_at_hand(folder, manifest) if not missing_files(folder, manifest, n, [*manifest["fields"]])
    ]
    return sum(len(shard_range(manifest, shard)) for shard in whole)


def wait_for_shards(folder: Path, fields: Sequence[str], patience: float = PATIENCE_S) -> None:
    """Wait until all shards of a cache hold some fields: other processes compute theirs.

    Args:
        folder: the cache.
        fields: by name; the manifest has them.
        patience: seconds without a new shard after which nobody is believed to be at work.

    Raises:
        UserError: it is over.
    """
    manifest = read_manifest(folder)
    left, since = list(range(manifest["shards"])), time.monotonic()
    while lacking := [shard for shard in left if missing_files(folder, manifest, shard, fields)]:
        if len(lacking) < len(left):
            left, since = lacking, time.monotonic()
        if time.monotonic() - since > patience:
            raise UserError(
                f"{len(left)} shards of other processes are missing in {folder}; start all processes again."
            )
        time.sleep(0.2)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file whose data always begins at byte `HEADER`, whichever numpy writes or reads it."""
    described = f"{{'descr': {array.dtype.str!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    header = described.encode().ljust(HEADER - 11) + b"\n"
    assert len(header) == HEADER - 10
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # `tofile` does not tell why it fails


def file_state(path: Path, shape: tuple[int, ...], dtype: str) -> str:
    """`complete`, `missing` or `damaged` (of another size than such an array has)."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    right = HEADER + math.prod(shape) * np.dtype(dtype).itemsize
    return "complete" if size == right else "damaged"
