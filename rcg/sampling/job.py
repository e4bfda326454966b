"""Drawing a pipeline's images as a job of parts, for engines that run these on other machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rcg.core.parts import Share
from rcg.sampling.bulk import SampleShards
from rcg.sampling.containers import ShardKind
from rcg.sampling.folder import SamplingFolder, run_id

MOST_PARTS = 1024
"""Of single images: each part looks at the whole folder once."""


@dataclass
class SampleJob:
    """The images of one run; a `rcg.core.parts.Job`.

    Attributes:
        out: the folder.
        num_images: in all.
        settings: everything that the images depend on.
        draw: numbers of images → the images.
        model: as it was named.
        batch_size: images drawn at a time.
        labels: see `SampleShards`.
        per_shard: images in a shard; None writes single files.
        shard_format: of shards.
        resume, overwrite: what to do with images that are there.
    """

    out: Path
    num_images: int
    settings: dict[str, Any]
    draw: Callable[[Sequence[int]], list[Image.Image]]
    model: str
    batch_size: int
    labels: Sequence[int] = ()
    per_shard: int | None = None
    shard_format: ShardKind = "tar"
    resume: bool = False
    overwrite: bool = False

    def folder(self, share: Share) -> SamplingFolder | SampleShards:
        """The folder, as the process of a share sees it."""
        if self.per_shard is None:
            return SamplingFolder(self.out, share)
        return SampleShards(self.out, self.per_shard, share, self.labels, self.shard_format)

    @property
    def parts(self) -> int:
        """A shard each; of single images about a batch."""
        if self.per_shard is not None:
            return -(-self.num_images // self.per_shard)
        return min(MOST_PARTS, -(-self.num_images // self.batch_size))

    def count(self, share: Share) -> int:
        """How many images a share is."""
        return self.folder(share).count(self.num_images)

    def claim(self) -> None:
        """See `rcg.core.parts.Job`. What fails at once shall fail before anything is thrown away."""
        if self.overwrite and self.num_images:
            self.draw([0])
        self.folder(Share()).claim(self.settings, model=self.model, resume=self.resume, overwrite=self.overwrite)

    def do(self, part: Share) -> None:
        """See `rcg.core.parts.Job`."""
        self.fill(part, resume=True, overwrite=False, grid=False)

    def fill(
        self,
        share: Share,
        *,
        resume: bool,
        overwrite: bool,
        grid: bool,
        on_images: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Draw the images of a share; see `SamplingFolder.fill`."""
        self.folder(share).fill(
            self.num_images, self.settings, self.draw, model=self.model, batch_size=self.batch_size, resume=resume,
            overwrite=overwrite, on_images=on_images, grid=grid,
        )  # fmt: skip

    def finish(self) -> None:
        """Make the grid, for which all images are there."""
        self.folder(Share()).write_grid(self.num_images, run_id(self.settings))

    def finish_if_ready(self) -> None:
        """Make the grid if its images are there; whoever comes last of several finds them."""
        if self.folder(Share()).is_grid_ready(self.num_images, self.settings):
            self.finish()
