"""The embedded sets as image sources, each opened by its name and options: `shapes:n=500`, `clothing:split=test,size=32`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.embedded.pack import embedded_pack
from rcg.data.image_source import ImageSource
from rcg.data.shapes import CLASS_NAMES, SHAPES_VERSION, draw, labels

CLOTHING_SIZE = 64
"""Pixels of a side of the embedded photographs."""


class ShapesSource(ImageSource):
    """The procedural set: see `rcg.data.shapes`. Use `open_source`.

    Args:
        n: pictures.
        size: pixels of a side.
        seed: of the pictures.
    """

    def __init__(self, n: int = 2000, size: int = 32, seed: int = 0) -> None:
        self.seed = seed
        self.name = f"shapes:n={n},size={size},seed={seed}"
        self.fingerprint = hashlib.sha256(f"{self.name} version {SHAPES_VERSION}".encode()).hexdigest()[:32]
        self.labels = labels(n)
        self.class_names = list(CLASS_NAMES)
        self.skipped = []
        self.sizes = np.full((n, 2), size, np.int32)

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`."""
        return Image.fromarray(draw(self.seed, index, int(self.sizes[index, 0])))


class ClothingSource(ImageSource):
    """Photographs of clothes of ten kinds: see `rcg/data/embedded/clothing.md`. Use `open_source`.

    Args:
        split: `train`, `validation`, `test`, or `all` of them.
        n: photographs, drawn at random from the split; None is all of it.
        size: pixels of a side, at most `CLOTHING_SIZE`.
        seed: of that draw.

    Raises:
        UserError: the split has fewer than `n` photographs.
    """

    def __init__(self, split: str = "train", n: int | None = None, size: int = CLOTHING_SIZE, seed: int = 0) -> None:
        pack = embedded_pack("clothing")
        chosen = np.flatnonzero(pack.splits == split) if split != "all" else np.arange(len(pack.splits))
        self.name = f"clothing:split={split},size={size}"
        if n is not None:
            if n > len(chosen):
                raise UserError(f"clothing:split={split} has {len(chosen)} photographs, not {n}; ask for fewer.")
            chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:n])
            self.name += f",n={n},seed={seed}"
        self.indices = chosen
        text = f"{self.name} {pack.fingerprint}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.labels = pack.labels[chosen]
        self.class_names = list(pack.classes)
        self.skipped = []
        self.sizes = np.full((len(chosen), 2), size, np.int32)

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`."""
        image = embedded_pack("clothing").image(int(self.indices[index]))
        size = (int(self.sizes[index, 0]),) * 2
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class EmbeddedSet:
    """One of the sets.

    Attributes:
        source: keyword arguments → the opened set.
        options: what may stand after the colon: the least and the largest whole number, or the words to choose from.
        example: all of them, as they are written.
    """

    source: Callable[..., ImageSource]
    options: Mapping[str, tuple[int, int] | tuple[str, ...]]
    example: str


_SEEDS = (0, 2**63 - 1)
EMBEDDED: dict[str, EmbeddedSet] = {
    "shapes": EmbeddedSet(
        ShapesSource, {"n": (1, 100_000_000), "size": (8, 4096), "seed": _SEEDS}, "shapes:n=2000,size=32,seed=0"
    ),
    "clothing": EmbeddedSet(
        ClothingSource,
        {
            "split": ("train", "validation", "test", "all"),
            "n": (1, 100_000_000),
            "size": (8, CLOTHING_SIZE),
            "seed": _SEEDS,
        },
        "clothing:split=train,n=2000,size=64,seed=0",
    ),
}
WAYS = "give a folder of images, shards, a zip archive or a table of them, or an embedded set, such as " + " or ".join(
    f"`{name}` or `{one.example}`" for name, one in EMBEDDED.items()
)


def open_embedded(spec: str) -> ImageSource | None:
    """The embedded set that `spec` names, `NAME` or `NAME:OPTION=VALUE,…`; None if it names none.

    Raises:
        UserError: the options are wrong.
    """
    name, _, rest = spec.partition(":")
    if name not in EMBEDDED:
        return None
    return EMBEDDED[name].source(**_options(spec, rest, EMBEDDED[name]))


def _options(spec: str, rest: str, chosen: EmbeddedSet) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in chosen.options or key in options:
            raise UserError(
                f"{spec!r}: {key!r} is {'given twice' if key in options else 'no option of the embedded set'}; "
                f"write {chosen.example}."
            )
        options[key] = _value(value, chosen.options[key], f"{spec!r}: {key}")
    return options


def _value(text: str, allowed: tuple[Any, ...], what: str) -> Any:
    if isinstance(allowed[0], str):
        if text not in allowed:
            raise UserError(f"{what} must be one of {', '.join(allowed)}, not {text!r}.")
        return text
    low, high = allowed
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise UserError(f"{what} must be a whole number from {low} to {high}, not {text!r}.")
    return int(text)
