"""Image sets as the extractors take them, of a source, a stream or a pipeline: uint8 images in a fixed order, of one size."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as tvf

from rcg.core.ahead import read_ahead
from rcg.core.errors import UserError
from rcg.core.hardware import has_free_core
from rcg.core.pictures import to_uint8
from rcg.core.rng import derive_seed, sample_generators
from rcg.data.image_source import sub_folders
from rcg.data.images import DecodePool, Framing
from rcg.data.sources import ImageSource, open_source
from rcg.eval.arrays import ArraySource
from rcg.eval.files import formats_of, names_of
from rcg.eval.sheets import find_sheets

Resize = Literal["antialiased", "plain"]
"""How `image_size` is reached: bicubic, with antialias (Pillow's), or without (PyTorch's)."""
LabelChoice = Literal["random", "balanced"]
PICKED = 32  # images of a pipeline drawn at once where single ones are asked for
AHEAD = 2  # batches decoded before they are asked for


class Images(ABC):
    """What an evaluation asks of a set of images.

    Attributes:
        name: what the report calls it.
        size: "32×32" (width first) and the like; None where only the images themselves tell.
        resize: "none", or how they were brought to that size; None where nobody knows.
        formats: how many files there are of each ending; empty where images come from no files.
        classes: how many images there are of each class; None without labels.
        notes: what a reader of the figures should know, in sentences.
        cut: whether a limit left some of the images out.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.size: str | None = None
        self.resize: str | None = None
        self.formats: Mapping[str, int] = {}
        self.classes: Mapping[str, int] | None = None
        self.notes: list[str] = []
        self.cut = False

    @abstractmethod
    def count(self) -> int | None:
        """How many images there are; None for a stream that does not say."""

    @abstractmethod
    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """The images number `start` to `stop` (all), uint8 tensors [B, 3, H, W]."""

    @abstractmethod
    def pick(self, numbers: Sequence[int]) -> torch.Tensor | None:
        """The images of these numbers, uint8 [n, 3, H, W], after an evaluation; None of a stream that has passed."""

    def file_of(self, number: int) -> str | None:
        """The name of the file that an image comes from, if it comes from one."""
        return None

    def to(self, device: torch.device) -> None:
        """Compute there, if there is anything to compute."""


def path_of(spec: str | Path) -> Path:
    """The path that a specification is, if it is one; `~` is the user's home, as in `open_source`."""
    return Path(os.path.expanduser(spec))  # noqa: PTH111 (which leaves what is nobody's home as it is)


def open_images(spec: str | Path) -> ImageSource:
    """The source that `spec` names: an `.npz` of images, or what `rcg.data.sources.open_source` takes."""
    if str(spec).endswith(".npz"):
        return ArraySource(path_of(spec))
    return open_source(spec, min_size=1)


class ImageSet(Images):
    """The images of a source that an evaluation looks at: see `Images`.

    Args:
        source: where they come from; sheets of samples among its files are left out (`rcg.eval.sheets`): real images that
            may differ in size only where they are called so.
        what: what messages call it, e.g. "generated".
        image_size: make every image this large (px): shorter side resized, centre cropped. None: they must be of one
            size already.
        resize: with antialias or without.
        limit: at most so many, drawn without replacement by `seed` (folders sorted by class would otherwise give one
            class only); their order stays that of the source.
        seed: of that draw.

    Attributes:
        indices: int64 [N], the images' numbers in the source.

    Raises:
        UserError: no image is left, or they differ in size and there is no `image_size`.
    """

    def __init__(
        self,
        source: ImageSource,
        what: str,
        *,
        image_size: int | None = None,
        resize: Resize = "antialiased",
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source.name)
        self.source = source
        self._is_core_free = True
        self._frame = None if image_size is None else Framing(image_size).base
        if image_size is not None and resize == "plain":
            self._frame = lambda image: frame_plainly(image, image_size)
        files = names_of(source)
        sheets = find_sheets(source.sizes, files, guess=what == "generated" or image_size is None)
        indices = np.arange(len(source), dtype=np.int64)
        if sheets:
            indices = np.delete(indices, sorted(sheets))
            names = ", ".join(files[i] for i in sorted(sheets)[:3])
            self.notes.append(f"{len(sheets)} sample grid(s) among the {what} images are left out: {names}.")
        if source.skipped:
            self.notes.append(f"{len(source.skipped)} unusable file(s) among the {what} images are left out.")
        if not len(indices):
            raise UserError(
                f"The {what} images in {source.name} are only sample grids; give a folder of single images."
            )
        if limit is not None and limit < len(indices):
            chosen = np.random.default_rng(derive_seed(seed, len(indices))).choice(len(indices), limit, replace=False)
            self.notes.append(f"{limit} of the {len(indices)} {what} images were drawn by the seed {seed}.")
            indices, self.cut = indices[np.sort(chosen)], True
        self.indices = indices
        self.formats = formats_of(source, indices)
        if source.labels is not None:
            numbers = np.bincount(source.labels[indices], minlength=len(source.class_names))
            found = dict(zip(source.class_names, numbers.tolist(), strict=True))
            empty = {name: 0 for name in _folders(source) if name not in found}
            self.classes = dict(sorted({**found, **empty}.items())) if empty else found
        pairs, counts = np.unique(source.sizes[indices].astype(np.int64) @ [1 << 32, 1], return_counts=True)
        sizes = Counter(
            {(int(pair) >> 32, int(pair) & 0xFFFFFFFF): int(n) for pair, n in zip(pairs, counts, strict=True)}
        )
        self.resize = "none"
        if image_size is not None:
            self.size = f"{image_size}×{image_size}"
            if list(sizes) != [(image_size, image_size)]:
                self.resize = f"bicubic, {'with' if resize == 'antialiased' else 'without'} antialias, centre crop"
        elif len(sizes) > 1:
            common = ", ".join(f"{n} of {w}×{h}" for (w, h), n in sizes.most_common(3))
            raise UserError(
                f"The {what} images differ in size ({common}…); give --image-size S to frame them all alike."
            )
        else:
            ((width, height),) = sizes
            self.size = f"{width}×{height}"

    def __len__(self) -> int:
        return len(self.indices)

    def count(self) -> int:
        """See `Images`."""
        return len(self.indices)

    def _array(self, index: int) -> np.ndarray:
        image = self.source.image(index)
        return np.asarray(image) if self._frame is None else self._frame(image)

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `Images`; decoded ahead in a thread where a core is free for it."""
        made = self._decode(batch_size, self.indices[start:stop])
        return read_ahead(made, AHEAD) if self._is_core_free else made

    def to(self, device: torch.device) -> None:
        """See `Images`."""
        self._is_core_free = has_free_core(device)

    def pick(self, numbers: Sequence[int]) -> torch.Tensor:
        """See `Images`."""
        return torch.cat(list(self._decode(64, self.indices[list(numbers)])))

    def file_of(self, number: int) -> str | None:
        """See `Images`."""
        files = names_of(self.source)
        return files[int(self.indices[number])] if len(files) else None

    def _decode(self, batch_size: int, indices: np.ndarray) -> Iterator[torch.Tensor]:
        pool = DecodePool()
        for start in range(0, len(indices), batch_size):
            arrays = list(pool.map(self._array, indices[start : start + batch_size].tolist()))
            yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _folders(source: ImageSource) -> list[str]:
    """The sub-folders of a source that is a folder, also those without an image."""
    folder: Path | None = getattr(source, "folder", None)
    return [] if folder is None else sub_folders(folder)


def frame_plainly(image: Any, size: int) -> np.ndarray:
    """A picture's short side brought to `size` px by PyTorch's bicubic interpolation without antialias, centre cropped."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None]
    height, width = pixels.shape[2:]
    if min(height, width) != size:
        shape = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=False)
    square = tvf.center_crop(pixels, [size])[0]
    return square.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


class StreamImages(Images):
    """Images of any iterable of uint8 batches: see `Images`.

    Args:
        batches: uint8 tensors [B, 3, H, W]; read once.
        count: how many images there will be; needed by the Inception Score and by several processes.
        name: what the report calls it.

    Raises:
        UserError: (while it is read) there are more images than `count`.
    """

    def __init__(self, batches: Iterable[torch.Tensor], count: int | None = None, name: str = "stream") -> None:
        super().__init__(name)
        self._batches, self._count = batches, count

    def count(self) -> int | None:
        """See `Images`."""
        return self._count

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `Images`; in the batches that they come in."""
        seen = 0
        for images in self._batches:
            if self._count is not None and seen + len(images) > self._count:
                raise UserError(f"{self.name} has more than the {self._count} images that it had said; mend it.")
            part = images[max(start - seen, 0) : None if stop is None else max(stop - seen, 0)]
            if len(part):
                yield part
            seen += len(images)
            if stop is not None and seen >= stop and stop != self._count:  # at the end it is seen whether more come
                return

    def pick(self, numbers: Sequence[int]) -> torch.Tensor | None:
        """See `Images`; of batches in a list or tuple."""
        if not isinstance(self._batches, Sequence):
            return None
        return torch.cat([next(self.batches(1, i, i + 1)) for i in numbers])


class Pipeline(Protocol):
    """What an `RCGPipeline` is to an evaluation."""

    @property
    def num_classes(self) -> int:
        """Classes that a call takes as `class_labels`, 0 if none."""
        ...

    def settings(self, **given: Any) -> Mapping[str, Any]:
        """The settings in force: those given, the model's own for the others."""
        ...

    def identity(self) -> str:
        """A hash of all that the images depend on besides settings and seed."""
        ...

    def to(self, device: torch.device) -> Any:
        """Compute there."""
        ...

    def __call__(self, **arguments: Any) -> Any:
        """Draw images."""
        ...


class PipelineImages(Images):
    """Images drawn by a pipeline, as `ImageSet` gives those of a folder: image i depends on the seed and i only.

    Args:
        pipeline: an `RCGPipeline`, where it is to compute.
        count: images to draw.
        seed: of the images.
        name: what the report calls the pipeline.
        labels: of a pipeline with classes: "random" draws each image's class as the pipeline does, "balanced" takes one
            class after the other. Balanced ones flatter the figures a little, as no chance is left in how often each occurs.
        remember: bytes of drawn images that are kept, the first ones, so that `pick` need not draw them anew.
        settings: of the pipeline's call; it has its own for what is left out.

    Raises:
        UserError: a setting that the pipeline cannot use.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        count: int,
        *,
        seed: int = 0,
        name: str = "pipeline",
        labels: LabelChoice = "random",
        remember: int = 0,
        **settings: float | None,
    ) -> None:
        super().__init__(name)
        self.pipeline, self._count, self.seed = pipeline, count, seed
        self._room, self._drawn = remember, dict[int, torch.Tensor]()
        self.settings = dict(pipeline.settings(**settings))
        self.labels = labels if pipeline.num_classes else None
        if labels == "balanced" and not pipeline.num_classes:
            raise UserError("balanced labels are for a pipeline with classes; this one has none.")
        if self.labels is not None:
            how = "at random" if labels == "random" else "in turn, so that all occur equally often"
            self.notes.append(f"The classes of the generated images are drawn {how}.")

    def __len__(self) -> int:
        return self._count

    def count(self) -> int:
        """See `Images`."""
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        """Sent elsewhere without what has been drawn."""
        return self.__dict__ | {"_drawn": {}, "_room": 0}

    def to(self, device: torch.device) -> None:
        """See `Images`."""
        self.pipeline.to(device)

    def identity(self) -> dict[str, Any]:
        """What the images depend on: the pipeline's weights and configs, the settings in force, the seed, the labels."""
        found = {"identity": self.pipeline.identity(), "settings": self.settings, "seed": self.seed}
        return found if self.labels is None else found | {"labels": self.labels}

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """See `Images`."""
        numbers = range(self._count)[start:stop]
        for first in range(0, len(numbers), batch_size):
            some = numbers[first : first + batch_size]
            drawn = self._draw(some)
            for number, image in zip(some, drawn, strict=True):
                if number not in self._drawn and image.nbytes <= self._room:
                    self._room -= image.nbytes
                    self._drawn[number] = image.clone()
            yield drawn

    def pick(self, numbers: Sequence[int]) -> torch.Tensor:
        """See `Images`; those that are not remembered are drawn anew."""
        missing = [n for n in dict.fromkeys(numbers) if n not in self._drawn]
        found = dict(self._drawn)
        for start in range(0, len(missing), PICKED):
            part = missing[start : start + PICKED]
            found |= dict(zip(part, self._draw(part), strict=True))
        return torch.stack([found[n] for n in numbers])

    def _draw(self, numbers: Sequence[int]) -> torch.Tensor:
        classes = [i % self.pipeline.num_classes for i in numbers] if self.labels == "balanced" else None
        made = self.pipeline(
            generator=[sample_generators(self.seed, i, 1)[0] for i in numbers],
            class_labels=classes,
            output_type="pt",
            **self.settings,
        )
        return to_uint8(made.images).cpu()
