"""A set of small photographs in one file of package data: encoded images one after the other, and what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from rcg.core.files import atomic_file
from rcg.data.decode import decode


@dataclass(frozen=True)
class Pack:
    """N square photographs of one size.

    Attributes:
        data: uint8, the encoded files one after the other.
        offsets: int64 [N + 1], where each begins and the last one ends.
        labels: int64 [N] in [0, len(classes)).
        classes: names, sorted.
        splits: which part of the set each belongs to, [N].
        size: pixels of a side.
        fingerprint: of all the above.
    """

    data: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: np.ndarray
    size: int
    fingerprint: str

    def image(self, index: int) -> Image.Image:
        """Photograph `index`, RGB."""
        return decode(self.data[self.offsets[index] : self.offsets[index + 1]].tobytes())


def write_pack(
    file: Path, images: Sequence[bytes], labels: Sequence[int], classes: Sequence[str], splits: Sequence[str], size: int
) -> None:
    """Put photographs into one file.

    Args:
        file: an .npz.
        images: N encoded files, each a picture of `size` × `size` pixels.
        labels: the number of each one's class.
        classes: names of the classes, sorted.
        splits: which part of the set each belongs to.
        size: pixels of a side.
    """
    arrays = {
        "data": np.frombuffer(b"".join(images), np.uint8),
        "offsets": np.cumsum([0, *map(len, images)]).astype(np.int32),
        "labels": np.array(labels, np.uint8),
        "classes": np.array(classes),
        "splits": np.searchsorted(names := np.unique(list(splits)), list(splits)).astype(np.uint8),
        "split_names": names,
        "size": np.array(size),
    }
    with atomic_file(file) as temporary, temporary.open("wb") as target:
        np.savez(target, **arrays)  # type: ignore[arg-type]


def read_pack(file: IO[bytes]) -> Pack:
    """The pack in an .npz that `write_pack` wrote."""
    with np.load(file) as arrays:  # without pickles, which is numpy's default
        found = {name: arrays[name] for name in arrays.files}
    digest = hashlib.sha256()
    for name, array in sorted(found.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return Pack(
        found["data"],
        found["offsets"].astype(np.int64),
        found["labels"].astype(np.int64),
        tuple(map(str, found["classes"])),
        found["split_names"][found["splits"]],
        int(found["size"]),
        digest.hexdigest()[:32],
    )


@cache
def embedded_pack(name: str) -> Pack:
    """A pack that comes with the library, read on first use: `clothing`."""
    with (resources.files("rcg.data.embedded") / f"{name}.npz").open("rb") as file:
        return read_pack(file)
