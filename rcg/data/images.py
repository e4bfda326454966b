"""Images as training batches: square, uint8, framed plainly or at random."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from rcg.core.errors import UserError
from rcg.data.sources import ImageSource
from rcg.data.verify import num_threads

CHUNK = 1 << 16
"""Images whose sizes are looked at together."""
Augment = Literal["none", "crop_flip"]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 images of any shape → float32 in [0, 1]."""
    return images.float() / 255


@dataclass(frozen=True)
class Framing:
    """How a picture of any size becomes a square of `size` pixels.

    Two steps, so that the first can be remembered: `base` (everything that is not random), then `view`.

    - `none`: short side resized to `size` (bicubic, antialiased), centre crop.
    - `crop_flip`: short side resized to `size`, a random crop of it, a flip (the RDM's augmentation in the RCG paper).
      With `crop_scale` below 1 instead of that crop: a part with a share of the area in [crop_scale, 1] and an aspect
      ratio in [3/4, 4/3], resized to the square.
    """

    size: int
    augment: Augment = "none"
    crop_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"the image size is {self.size}, but it must be at least 1 pixel.")
        if not 0 < self.crop_scale <= 1:
            raise UserError(f"the crop scale is {self.crop_scale}, but it must lie in (0, 1].")
        if self.augment not in ("none", "crop_flip"):
            raise UserError(f"there is no augmentation {self.augment!r}; take none or crop_flip.")

    @property
    def resizes_parts(self) -> bool:
        """Whether each view is resized from the whole picture, so that `base` must keep the picture's own size."""
        return self.augment == "crop_flip" and self.crop_scale < 1

    def base_shapes(self, sizes: np.ndarray) -> np.ndarray:
        """Height and width of `base`, int64 [N, 2], for pictures of these widths and heights, [N, 2]."""
        width, height = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
        if self.resizes_parts:
            return np.stack([height, width], 1)
        if self.augment == "none":
            return np.full((len(sizes), 2), self.size, np.int64)
        tall = width <= height
        long = (self.size * np.maximum(width, height) / np.minimum(width, height)).astype(np.int64)
        return np.stack([np.where(tall, long, self.size), np.where(tall, self.size, long)], 1)

    def base(self, image: Image.Image) -> np.ndarray:
        """The part of the framing that is not random: uint8 [h, w, 3], see `base_shapes`."""
        if not self.resizes_parts:
            image = tvf.resize(image, [self.size], InterpolationMode.BICUBIC, antialias=True)
            if self.augment == "none":
                image = tvf.center_crop(image, [self.size])
        return np.asarray(image)

    def view(self, base: np.ndarray, rng: np.random.Generator, flip: bool | None = None) -> np.ndarray:
        """A random view of a `base`: uint8 [size, size, 3].

        Args:
            base: what `base` returned.
            rng: decides on the crop and, if `flip` is None, on the flip.
            flip: mirror left to right, or not.
        """
        if self.augment == "none":
            return base
        if self.resizes_parts:
            top, left, height, width = self._part(base.shape[0], base.shape[1], rng)
            part = tvf.resized_crop(
                Image.fromarray(base), top, left, height, width, [self.size] * 2, InterpolationMode.BICUBIC
            )
            square = np.asarray(part)
        else:
            top = int(rng.integers(base.shape[0] - self.size + 1))
            left = int(rng.integers(base.shape[1] - self.size + 1))
            square = base[top : top + self.size, left : left + self.size]
        if flip is None:
            flip = bool(rng.random() < 0.5)
        return square[:, ::-1] if flip else square

    def _part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = height * width * rng.uniform(self.crop_scale, 1)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        side = min(height, width)  # a panorama: its central square
        return (height - side) // 2, (width - side) // 2, side, side


class DecodePool:
    """Threads for decoding, started on first use, in whichever process that is; `map` keeps the order."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0

    def map(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        """Like `map(function, items)`, in threads. The function must not use torch's or numpy's global random state."""
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = ThreadPoolExecutor(num_threads(), "decode"), os.getpid()
        return self._pool.map(function, items)

    def __getstate__(self) -> dict[str, Any]:
        return {"_pool": None, "_pid": 0}


class ImageDataset:
    """A `BatchDataset` over the images of a source.

    Batches hold `images` uint8 [B, 3, size, size], `indices` int64 [B] and, where the source has them, `labels` int64 [B].

    Args:
        source: the images.
        size: side of the square, in pixels.
        augment: `none` or `crop_flip`, see `Framing`.
        crop_scale: least share of the picture's area in a random crop; 1 is the paper's plain random crop.
        memory: bytes of decoded images this process may keep; if the set needs more, it is decoded on demand.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        augment: Augment = "none",
        crop_scale: float = 1.0,
        memory: int = 1 << 30,
    ) -> None:
        self.source = source
        self.size = size
        self.framing = Framing(size, augment, crop_scale)
        self.labels = source.labels
        self.class_names = source.class_names
        text = f"{source.fingerprint} {size} {augment} {crop_scale} {source.label_digest()}".rstrip()
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._pool = DecodePool()
        self._kept: np.ndarray | None = None
        if (shapes := self._shapes_within(memory)) is not None:
            self._shapes, self._ends = shapes, np.cumsum(3 * shapes.prod(axis=1))
            # pages are taken from the system only when an image is put there
            self._kept, self._have = np.empty(self._ends[-1], np.uint8), np.zeros(len(source), bool)

    def _shapes_within(self, memory: int) -> np.ndarray | None:
        """Height and width of each base; None if they need more than so many bytes, which is seen from the first of them."""
        least = 3 if self.framing.resizes_parts else 3 * self.size**2
        if len(self.source) * least > memory:
            return None
        shapes, needed = list[np.ndarray](), 0
        for start in range(0, len(self.source), CHUNK):
            shapes.append(self.framing.base_shapes(self.source.sizes[start : start + CHUNK]))
            if (needed := needed + 3 * int(shapes[-1].prod(axis=1).sum())) > memory:
                return None
        return np.concatenate(shapes)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def _base(self, index: int) -> np.ndarray:
        if self._kept is None:
            return self.framing.base(self.source.image(index))
        height, width = self._shapes[index].tolist()
        end = int(self._ends[index])
        place = self._kept[end - height * width * 3 : end].reshape(height, width, 3)
        if not self._have[index]:
            place[...] = self.framing.base(self.source.image(index))
            self._have[index] = True
        return place

    def _view(self, item: tuple[int, int]) -> np.ndarray:
        return self.framing.view(self._base(item[0]), np.random.default_rng(item[1]))

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, torch.Tensor]:
        """See `BatchDataset.batch`; sample j depends on `indices[j]` and `seeds[j]` only."""
        items = [(int(i), int(s)) for i, s in zip(indices, seeds, strict=True)]
        easy = self._kept is not None and bool(self._have[indices].all()) and not self.framing.resizes_parts
        views = map(self._view, items) if easy else self._pool.map(self._view, items)
        images = np.empty((len(items), self.size, self.size, 3), np.uint8)
        for place, view in zip(images, views, strict=True):
            place[...] = view
        batch = {
            "images": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            "indices": torch.from_numpy(np.array(indices, np.int64)),
        }
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[indices])
        return batch
