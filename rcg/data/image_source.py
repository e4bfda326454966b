"""What every set of images is to those who read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png webp bmp dib gif tif tiff ppm pgm pbm pnm tga jp2 avif".split()  # noqa: SIM905
)
"""Endings of files that are taken for images; the file's content decides the rest."""


def listing(skipped: list[tuple[str, str]]) -> str:
    """The first ten (path, reason) of images that cannot be used, in words."""
    first = "; ".join(f"{path} ({reason})" for path, reason in skipped[:10])
    return first + (f"; and {len(skipped) - 10} more" if len(skipped) > 10 else "")


@dataclass(frozen=True)
class Groups:
    """Which images belong together: several of one caption (or of one representation), positives of each other.

    Attributes:
        numbers: int64 [N]: group of each image, in [0, number of groups), every group in use.
        keys: name of each group.
        captions: text of each group; None where it has none.
    """

    numbers: np.ndarray
    keys: list[str]
    captions: list[str | None]

    def identities(self) -> np.ndarray:
        """int64 [groups]: equal where captions are, so that one that occurs twice is one; without captions, by key."""
        names = [
            f"k {key}" if text is None else f"c {text}" for key, text in zip(self.keys, self.captions, strict=True)
        ]
        number = {name: i for i, name in enumerate(sorted(set(names)))}
        return np.array([number[name] for name in names], np.int64)


class ImageSource(ABC):
    """Numbered RGB images, in an order that never changes, and perhaps a class for each."""

    name: str
    """A name to show to people."""
    fingerprint: str
    """Changes when the usable images, their order or their relative paths change; not when the folder moves."""
    labels: np.ndarray | None
    """int64 [N] in [0, len(class_names)), or None."""
    class_names: list[str]
    """Sorted; empty without labels."""
    skipped: list[tuple[str, str]]
    """(path, reason) of files that looked like images but cannot be used."""
    sizes: np.ndarray
    """int32 [N, 2]: width and height of each image, in pixels."""

    def __len__(self) -> int:
        return len(self.sizes)

    def groups(self) -> Groups | None:
        """Which images belong together; None where every image stands alone."""
        return None

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image `index` as an upright RGB picture of its own size."""
