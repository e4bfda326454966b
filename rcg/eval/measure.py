"""`measure`: one pass of an extractor over an image set, of which only what the metrics need is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from rcg.core.errors import UserError
from rcg.eval.features import FeatureExtractor, run_extractor
from rcg.eval.images import Images
from rcg.eval.inception_score import InceptionScore
from rcg.eval.moments import Moments, RowSample
from rcg.eval.nearest import Nearest
from rcg.eval.processes import Processes
from rcg.eval.references import ImageStats, Origin


@dataclass(frozen=True)
class Wanted:
    """What is to be kept of a set beside mean and covariance.

    Attributes:
        sample: features to keep at most; 0 keeps none.
        spatial: statistics of the spatial features.
        score: the Inception Score.
        near: features [Q, D] of other images, to each of which the nearest images of this set are sought, among all of them.
        neighbors: how many for each.
    """

    sample: int = 0
    spatial: bool = False
    score: bool = False
    near: np.ndarray | None = None
    neighbors: int = 1


def size_of(pixels: torch.Tensor) -> str:
    """ "32×32" (width first) and the like of images [B, 3, H, W]."""
    return f"{pixels.shape[3]}×{pixels.shape[2]}"


class _Kept:
    """What one process has seen of a set."""

    def __init__(self, extractor: FeatureExtractor, wanted: Wanted, count: int | None, seed: int) -> None:
        self.moments = Moments(extractor.dim)
        self.spatial = Moments(extractor.spatial_dim) if wanted.spatial else None
        self.sample = RowSample(wanted.sample, seed) if wanted.sample else None
        self.score = None if count is None or not wanted.score else InceptionScore(count, seed)
        self.nearest = None if wanted.near is None else Nearest(wanted.near, wanted.neighbors)
        self.size: str | None = None

    def flush(self) -> None:
        self.moments.flush()
        if self.spatial is not None:
            self.spatial.flush()
        if self.nearest is not None:
            self.nearest.flush()

    def merge(self, other: _Kept) -> None:
        self.moments.merge(other.moments)
        if self.spatial is not None and other.spatial is not None:
            self.spatial.merge(other.spatial)
        if self.sample is not None and other.sample is not None:
            self.sample.merge(other.sample)
        if self.score is not None and other.score is not None:
            self.score.merge(other.score)
        if self.nearest is not None and other.nearest is not None:
            self.nearest.merge(other.nearest)
        self.size = self.size or other.size


def measure(
    extractor: FeatureExtractor,
    images: Images,
    wanted: Wanted,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    processes: Processes | None = None,
    on_first: Callable[[torch.Tensor], None] = lambda pixels: None,
    label: str = "images",
    progress: bool = True,
) -> ImageStats:
    """Measure an image set: every metric lives on what one pass keeps.

    Memory does not grow with the number of images beyond `wanted.sample`. On a CPU the result does not depend on the batch
    size, to the bit, and with several processes it is that of one to about 12 digits; on a GPU the features' own rounding
    remains, about 6 digits.

    Args:
        extractor: moved to `device`.
        images: the set; of several processes each one measures its part.
        wanted: what to keep.
        seed: of the sample, and of the Inception Score's splits.
        batch_size: images decoded or drawn at once, and in one pass on a GPU.
        device: where the extractor runs.
        precision: of the extractor, see `run_extractor`.
        processes: this one and the others.
        on_first: called with the first images, uint8 [B, 3, H, W]; may raise.
        label: the progress bar's name.
        progress: show a progress bar.

    Raises:
        UserError: fewer than 2 images, images of several sizes, features that are not finite, or a stream of unknown length
            for several processes.
    """
    processes = processes or Processes()
    count = images.count()
    if count is None and processes.world > 1:
        raise UserError(f"{images.name} does not say how many images it has; give the count, or use a single process.")
    start, stop = (0, None) if count is None else processes.share(count)
    kept = _Kept(extractor, wanted, count, seed)
    place, batches = start, images.batches(batch_size, start, stop)
    stream = run_extractor(extractor, batches, device=device, precision=precision, rows=batch_size)
    with tqdm(total=stop and stop - start, desc=label, unit="image", disable=not progress) as bar:
        for pixels, outputs in stream:
            size = size_of(pixels)
            if kept.size is None:
                on_first(pixels)
            elif kept.size != size:
                raise UserError(f"The images of {images.name} differ in size ({kept.size}, {size}); make them alike.")
            kept.size = size
            kept.moments.add(outputs.features)
            if kept.sample is not None:
                kept.sample.add(place, outputs.features.cpu().numpy())
            if kept.spatial is not None and outputs.spatial is not None:
                kept.spatial.add(outputs.spatial)
            if kept.score is not None and outputs.logits is not None:
                kept.score.add(place, outputs.logits)
            if kept.nearest is not None:
                kept.nearest.add(place, outputs.features)
            place += len(pixels)
            bar.update(len(pixels))
    kept.flush()
    first, *others = processes.gather(kept)
    for other in others:
        first.merge(other)
    return _stats(first, extractor, images, precision)


def _stats(kept: _Kept, extractor: FeatureExtractor, images: Images, precision: str) -> ImageStats:
    count = images.count()
    if count is not None and kept.moments.count != count:
        raise UserError(f"{images.name} gave {kept.moments.count} images and not {count}, as it had said; mend it.")
    mu, sigma = kept.moments.stats()
    origin = Origin(
        source=images.name,
        extractor=extractor.name,
        weights_hash=extractor.weights_hash,
        precision=precision,
        size=kept.size,
        resize=images.resize,
        formats=dict(images.formats),
        classes=None if images.classes is None else dict(images.classes),
    )
    return ImageStats(
        mu=mu,
        sigma=sigma,
        n=kept.moments.count,
        origin=origin,
        features=None if kept.sample is None else np.ascontiguousarray(kept.sample.rows(), dtype=np.float32),
        spatial=None if kept.spatial is None else kept.spatial.stats(),
        inception_score=None if kept.score is None else kept.score.score(),
        numbers=None if kept.sample is None else kept.sample.numbers(),
        neighbors=None if kept.nearest is None else kept.nearest.neighbors(),
    )
