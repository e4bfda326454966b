"""`measure`: one pass of an extractor over an image set, of which only what the metrics need is kept.

The images are summed up leaf by leaf, and leaves are joined in pairs, pairs of pairs and so on, whoever sees which of them:
so one process, several, and the workers of an engine do the same additions in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rcg.core.errors import UserError
from rcg.core.hardware import pick_device
from rcg.core.parts import Share
from rcg.eval.features import FeatureExtractor, Outputs, bf16_change, run_extractor
from rcg.eval.images import Images
from rcg.eval.inception_score import InceptionScore
from rcg.eval.moments import Moments, RowSample
from rcg.eval.nearest import Nearest
from rcg.eval.processes import Crew, Processes
from rcg.eval.references import ImageStats, Origin

LEAF = 64
"""Images in a leaf at least: a multiple of what an extractor sees at once on a CPU."""
MOST_LEAVES = 256
"""Beyond it leaves are larger. Bounds what is waiting to be joined, which is the logarithm of it."""


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


@dataclass(frozen=True)
class Change:
    """How far bf16 moves the features of a set's first images: see `rcg.eval.features.bf16_change`."""

    share: float
    images: int


def size_of(pixels: torch.Tensor) -> str:
    """ "32×32" (width first) and the like of images [B, 3, H, W]."""
    return f"{pixels.shape[3]}×{pixels.shape[2]}"


def leaf_of(count: int | None) -> int:
    """How many images of a set of `count` make a leaf."""
    leaf = LEAF
    while leaf * MOST_LEAVES < (count or 0):
        leaf *= 2
    return leaf


class _Sums:
    """Float64 sums over images, whose bits depend on the order of additions."""

    def __init__(self, extractor: FeatureExtractor, wanted: Wanted, score: InceptionScore | None) -> None:
        self.moments = Moments(extractor.dim)
        self.spatial = Moments(extractor.spatial_dim) if wanted.spatial else None
        self.score = None if score is None else score.like()

    def add(self, place: int, outputs: Outputs) -> None:
        self.moments.add(outputs.features)
        if self.spatial is not None and outputs.spatial is not None:
            self.spatial.add(outputs.spatial)
        if self.score is not None and outputs.logits is not None:
            self.score.add(place, outputs.logits)

    def flush(self) -> None:
        for part in (self.moments, self.spatial, self.score):
            if part is not None:
                part.flush()

    def merge(self, later: _Sums) -> None:
        self.moments.merge(later.moments)
        if self.spatial is not None and later.spatial is not None:
            self.spatial.merge(later.spatial)
        if self.score is not None and later.score is not None:
            self.score.merge(later.score)


class _Tree:
    """Sums of leaves 0, 1, 2, …, in any order, each joined with its neighbour as soon as both are there."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], _Sums] = {}
        """By level and place: leaves from place·2^level on, 2^level of them."""

    def add(self, place: int, node: _Sums, level: int = 0) -> None:
        while (other := self.nodes.pop((level, place ^ 1), None)) is not None:
            left, right = (other, node) if place & 1 else (node, other)
            left.merge(right)
            node, level, place = left, level + 1, place >> 1
        self.nodes[level, place] = node

    def merge(self, other: _Tree) -> None:
        for (level, place), node in other.nodes.items():
            self.add(place, node, level)

    def whole(self) -> _Sums:
        """All leaves together; nothing may be added any more."""
        first, *later = (self.nodes[at] for at in sorted(self.nodes, key=lambda at: at[1] << at[0]))
        for node in later:
            first.merge(node)
        return first


class _Kept:
    """What has been seen of a set: sums, and what does not depend on the order of images."""

    def __init__(self, extractor: FeatureExtractor, wanted: Wanted, seed: int) -> None:
        self.tree = _Tree()
        self.sample = RowSample(wanted.sample, seed) if wanted.sample else None
        self.nearest = None if wanted.near is None else Nearest(wanted.near, wanted.neighbors)
        self.size: str | None = None
        self.change: Change | None = None

    def add(self, place: int, outputs: Outputs) -> None:
        if self.sample is not None:
            self.sample.add(place, outputs.features.cpu().numpy())
        if self.nearest is not None:
            self.nearest.add(place, outputs.features)

    def merge(self, other: _Kept) -> None:
        self.tree.merge(other.tree)
        if self.sample is not None and other.sample is not None:
            self.sample.merge(other.sample)
        if self.nearest is not None and other.nearest is not None:
            self.nearest.merge(other.nearest)
        self.size = self.size or other.size
        self.change = self.change or other.change


@dataclass(frozen=True)
class _Measuring:
    """The work of measuring a set, which can be sent to where it is done."""

    extractor: FeatureExtractor
    images: Images
    wanted: Wanted
    seed: int
    batch_size: int | None
    device: str
    precision: str
    check_size: Callable[[str], None] | None
    tell_change: bool

    @property
    def leaves(self) -> int:
        """How many there are, 1 where nobody knows."""
        count = self.images.count()
        return 1 if count is None else -(-count // leaf_of(count))

    def __call__(self, share: Share, on_images: Callable[[int], None]) -> _Kept:
        """Measure a share of the leaves."""
        device = pick_device(self.device)
        batch_size = self.batch_size or batch_size_for(device)
        count, wanted = self.images.count(), self.wanted
        leaf = leaf_of(count)
        score = None if count is None or not wanted.score else InceptionScore(count, self.seed)
        kept = _Kept(self.extractor, wanted, self.seed)
        place, stop = 0, None
        if count is not None:
            own = share.run_of(self.leaves)
            place, stop = own.start * leaf, min(own.stop * leaf, count)
        if place != stop:
            self.images.to(device)
        batches = self.images.batches(batch_size, place, stop)
        stream = run_extractor(self.extractor, batches, device=device, precision=self.precision, rows=batch_size)
        sums = _Sums(self.extractor, wanted, score)

        def close() -> _Sums:
            sums.flush()
            kept.tree.add((place - 1) // leaf, sums)
            return _Sums(self.extractor, wanted, score)

        for pixels, outputs in stream:
            self._look(kept, pixels, place, device)
            kept.add(place, outputs)
            for part in _at_borders(outputs, place, leaf):
                sums.add(place, part)
                place += len(part.features)
                if place % leaf == 0:
                    sums = close()
            on_images(len(pixels))
        if sums.moments.pending:
            close()
        if kept.nearest is not None:
            kept.nearest.flush()
        return kept

    def _look(self, kept: _Kept, pixels: torch.Tensor, place: int, device: torch.device) -> None:
        size = size_of(pixels)
        if kept.size is None and self.check_size is not None:
            self.check_size(size)
        if kept.size not in (None, size):
            raise UserError(f"The images of {self.images.name} differ in size ({kept.size}, {size}); make them alike.")
        kept.size = size
        if self.tell_change and place == 0:
            kept.change = Change(bf16_change(self.extractor, pixels, device), len(pixels))


def batch_size_for(device: torch.device) -> int:
    """Images decoded or drawn at once, where nobody says."""
    return 16 if device.type == "cpu" else 64


def _at_borders(outputs: Outputs, place: int, leaf: int) -> Iterator[Outputs]:
    """What is made of the images number `place` and following, in pieces that each lie in one leaf."""
    count = len(outputs.features)
    ends = [*range(leaf - place % leaf, count, leaf), count]
    for start, end in zip([0, *ends], ends, strict=False):
        features, logits, spatial = (None if x is None else x[start:end] for x in outputs)
        assert features is not None
        yield Outputs(features, logits, spatial)


def measure(
    extractor: FeatureExtractor,
    images: Images,
    wanted: Wanted,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    crew: Crew | None = None,
    check_size: Callable[[str], None] | None = None,
    on_change: Callable[[Change], None] | None = None,
    label: str = "images",
    progress: bool = True,
) -> ImageStats:
    """Measure an image set: every metric lives on what one pass keeps.

    Memory does not grow with the number of images beyond `wanted.sample` and eight times the covariance. On a CPU with one
    number of threads the result does not depend on the batch size nor on who measures which part, to the bit; on a GPU the
    features' own rounding remains, about 6 digits. (A stream that does not say how many images it has gives the bits of one
    that does up to 16,384 images, and 12 digits beyond.)

    Args:
        extractor: moved to `device`.
        images: the set; of several processes each one measures its part.
        wanted: what to keep.
        seed: of the sample, and of the Inception Score's splits.
        batch_size: images decoded or drawn at once, and in one pass on a GPU; None: 16 on a CPU, 64 on a GPU.
        device: where the extractor runs.
        precision: of the extractor, see `run_extractor`.
        crew: who measures; None: this process alone.
        check_size: called with the size of the images ("32×32") when the first ones are seen; may raise.
        on_change: if given, told how far bf16 moves the features of the first images.
        label: the progress bar's name.
        progress: show a progress bar.

    Raises:
        UserError: fewer than 2 images, images of several sizes, features that are not finite, or a stream of unknown length
            for several processes.
    """
    crew = crew or Processes()
    if images.count() is None and crew.several:
        raise UserError(f"{images.name} does not say how many images it has; give the count, or use a single process.")
    tell = on_change is not None and precision == "bf16"
    work = _Measuring(extractor, images, wanted, seed, batch_size, device, precision, check_size, tell)
    parts = crew.each(work, work.leaves, images.count(), label if progress else None)
    first = next(parts)
    for other in parts:  # joined as they come, so that few of them are held at once
        first.merge(other)
    if on_change is not None and first.change is not None:
        on_change(first.change)
    return _stats(first, extractor, images, precision)


def _stats(kept: _Kept, extractor: FeatureExtractor, images: Images, precision: str) -> ImageStats:
    seen = sum(node.moments.count for node in kept.tree.nodes.values())
    if seen < 2:
        raise UserError(f"Statistics need at least 2 images; {images.name} has {seen}.")
    sums, count = kept.tree.whole(), images.count()
    if count is not None and seen != count:
        raise UserError(f"{images.name} gave {seen} images and not {count}, as it had said; mend it.")
    mu, sigma = sums.moments.stats()
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
        n=seen,
        origin=origin,
        features=None if kept.sample is None else np.ascontiguousarray(kept.sample.rows(), dtype=np.float32),
        spatial=None if sums.spatial is None else sums.spatial.stats(),
        inception_score=None if sums.score is None else sums.score.score(),
        numbers=None if kept.sample is None else kept.sample.numbers(),
        neighbors=None if kept.nearest is None else kept.nearest.neighbors(),
    )
