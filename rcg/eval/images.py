"""Image sets as the extractors take them, of a source or of a pipeline: uint8 images in a fixed order, of one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch

from rcg.core.errors import UserError
from rcg.core.pictures import to_uint8
from rcg.core.rng import derive_seed, sample_generators
from rcg.data.images import DecodePool, Framing
from rcg.data.sources import ImageSource


def is_grid(path: str) -> bool:
    """Whether a file is a sheet of samples and no sample: `grid.png`, `grid_….png` (any image ending)."""
    stem = PurePosixPath(path).stem.lower()
    return stem == "grid" or stem.startswith("grid_")


class ImageSet:
    """The images of a source that an evaluation looks at.

    Args:
        source: where they come from; sample grids among its files are left out.
        what: what messages call it, e.g. "generated".
        image_size: make every image this large (px): shorter side resized, centre cropped. None: they must be of one
            size already.
        limit: at most so many, drawn without replacement by `seed` (folders sorted by class would otherwise give one
            class only); their order stays that of the source.
        seed: of that draw.

    Attributes:
        indices: int64 [N], the images' numbers in the source.
        size: "32×32" and the like.
        notes: what was left out, in sentences.

    Raises:
        UserError: no image is left, or they differ in size and there is no `image_size`.
    """

    def __init__(
        self, source: ImageSource, what: str, *, image_size: int | None = None, limit: int | None = None, seed: int = 0
    ) -> None:
        self.source = source
        self.framing = None if image_size is None else Framing(image_size)
        self.notes: list[str] = []
        files: list[str] = getattr(source, "files", [])  # of a folder
        grids = {i for i, file in enumerate(files) if is_grid(file)}
        indices = np.array([i for i in range(len(source)) if i not in grids], dtype=np.int64)
        if grids:
            names = ", ".join(files[i] for i in sorted(grids)[:3])
            self.notes.append(f"{len(grids)} sample grid(s) among the {what} images are left out: {names}.")
        if source.skipped:
            self.notes.append(f"{len(source.skipped)} unusable file(s) among the {what} images are left out.")
        if not len(indices):
            raise UserError(
                f"The {what} images in {source.name} are only sample grids; give a folder of single images."
            )
        if limit is not None and limit < len(indices):
            chosen = np.random.default_rng(derive_seed(seed, len(indices))).choice(len(indices), limit, replace=False)
            self.notes.append(f"{limit} of the {len(indices)} {what} images were drawn by the seed {seed}.")
            indices = indices[np.sort(chosen)]
        self.indices = indices
        sizes = Counter((int(w), int(h)) for w, h in source.sizes[indices])
        if image_size is not None:
            self.size = f"{image_size}×{image_size}"
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

    def _array(self, index: int) -> np.ndarray:
        image = self.source.image(index)
        return np.asarray(image) if self.framing is None else self.framing.base(image)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 tensors [B, 3, H, W]."""
        pool = DecodePool()
        for start in range(0, len(self), batch_size):
            arrays = list(pool.map(self._array, self.indices[start : start + batch_size].tolist()))
            yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


class Pipeline(Protocol):
    """What an `RCGPipeline` is to an evaluation."""

    def settings(self, **given: Any) -> Mapping[str, Any]:
        """The settings in force: those given, the model's own for the others."""
        ...

    def identity(self) -> str:
        """A hash of all that the images depend on besides settings and seed."""
        ...

    def __call__(self, **arguments: Any) -> Any:
        """Draw images."""
        ...


class PipelineImages:
    """Images drawn by a pipeline, as `ImageSet` gives those of a folder: image i depends on the seed and i only.

    Args:
        pipeline: an `RCGPipeline`, where it is to compute.
        count: images to draw.
        seed: of the images.
        name: what the report calls the pipeline.
        settings: of the pipeline's call; it has its own for what is left out.

    Raises:
        UserError: a setting that the pipeline cannot use.
    """

    size = None  # known to the tokenizer only

    def __init__(
        self, pipeline: Pipeline, count: int, *, seed: int = 0, name: str = "pipeline", **settings: float | None
    ) -> None:
        self.pipeline, self.count, self.seed, self.name = pipeline, count, seed, name
        self.settings = dict(pipeline.settings(**settings))
        self.notes: list[str] = []

    def __len__(self) -> int:
        return self.count

    def identity(self) -> dict[str, Any]:
        """What the images depend on: the pipeline's weights and configs, the settings in force, the seed."""
        return {"identity": self.pipeline.identity(), "settings": self.settings, "seed": self.seed}

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 tensors [B, 3, H, W]."""
        for start in range(0, self.count, batch_size):
            generators = sample_generators(self.seed, start, min(batch_size, self.count - start))
            yield to_uint8(self.pipeline(generator=generators, output_type="pt", **self.settings).images)
