"""What is known of the files that a source's images come from: their names and formats, in folders, archives and tables."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import overload

import numpy as np
from PIL import Image

from rcg.data.decode import DecodeError
from rcg.data.image_source import ImageSource, is_image
from rcg.data.packed import Index, PackedSource

LOOKED_AT = 32
"""Images of a table whose first bytes are read: its rows have no endings."""


class _Members(Sequence[str]):
    """Names of the images of an index, which are not all held at once."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self._index.name(n) for n in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._index.name(int(i) % len(self))

    def __iter__(self) -> Iterator[str]:
        return (self._index.name(i) for i in range(len(self)))


def names_of(source: ImageSource) -> Sequence[str]:
    """The name of each image's file: its path in the folder, or in the archive. Empty where images come from no files."""
    if isinstance(source, PackedSource):
        return _Members(source.index)
    found: list[str] = getattr(source, "files", [])
    return found


def formats_of(source: ImageSource, indices: np.ndarray) -> dict[str, int]:
    """How many files there are of each ending ("png", "jpg"); empty where images come from no files.

    Rows of a table have no ending: some are looked at, and stand for the others.

    Args:
        source: the images.
        indices: int64 [N], those that count.
    """
    names = names_of(source)
    if not len(names):
        return {}
    if isinstance(source, PackedSource) and not is_image(names[int(indices[0])]):
        return _by_content(source, indices)
    return dict(Counter(PurePosixPath(names[i]).suffix.lower().lstrip(".") for i in indices.tolist()))


def _by_content(source: PackedSource, indices: np.ndarray) -> dict[str, int]:
    some = indices[np.unique(np.linspace(0, len(indices) - 1, LOOKED_AT).round().astype(np.int64))]
    found: Counter[str] = Counter()
    for i in some.tolist():
        place = source.index.places[i]
        try:
            data = source.format.read(source.blobs[int(place["file"])], place)
            with Image.open(io.BytesIO(data)) as image:
                found[(image.format or "").lower()] += 1
        except (OSError, DecodeError):
            continue  # decoding it says so
    seen = found.total()
    return {ending: max(1, round(len(indices) * number / seen)) for ending, number in found.items()}
