"""Images of a pipeline in shards: a million of them without a million files. `rcg-sample --shards`.

Image i lies in shard i // n as `000000000.png`, with the very bytes of the single file that `SamplingFolder` writes; its
class, where it was asked for, beside it as `000000000.cls`. A shard is a tar file as WebDataset has it, or a Parquet file with
the columns `image` and `label`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.parts import Share
from rcg.core.pictures import make_grid, png_bytes, png_text, save_png
from rcg.sampling.containers import ShardKind, container_of
from rcg.sampling.folder import GRID, GRID_IMAGES, IMAGE, MANIFEST, PATIENCE_S, read_picture, run_id
from rcg.sampling.shard_folder import ShardFolder, key_of

IMAGES_PER_SHARD = 1000


@dataclass
class SampleShards:
    """A folder of one run's images in shards.

    Attributes:
        out: the folder; need not exist.
        per_shard: images in a shard.
        share: this process's part: shards rank, rank + world, …
        labels: image i is of the (i modulo n)-th of these n classes; none: classes are not written down.
        kind: of the shards.
    """

    out: Path
    per_shard: int = IMAGES_PER_SHARD
    share: Share = field(default_factory=Share)
    labels: Sequence[int] = ()
    kind: ShardKind = "tar"

    def __post_init__(self) -> None:
        self.folder = ShardFolder(
            self.out, self.share, "rcg-sample", MANIFEST, container_of(self.kind, bool(self.labels))
        )

    def images(self, shard: int, num_images: int) -> range:
        """The numbers of the images in a shard."""
        return range(shard * self.per_shard, min(num_images, (shard + 1) * self.per_shard))

    def own(self, num_images: int) -> range:
        """This process's shards."""
        return self.share.of(-(-num_images // self.per_shard))

    def count(self, num_images: int) -> int:
        """How many images this process makes."""
        return sum(len(self.images(shard, num_images)) for shard in self.own(num_images))

    def _is_done(self, index: int, run: str) -> bool:
        file = self.folder.work(index // self.per_shard) / f"{key_of(index)}.png"
        return (png_text(file) or {}).get("rcg-run") == run

    def _holds(self, shard: int, images: range, run: str) -> bool:
        """Whether a finished shard is this run's and holds these images.

        Where --overwrite died before each process had thrown its old shards away, those of the run before still lie there.

        Raises:
            UserError: it is damaged.
        """
        held = set(self.folder.holds(shard))
        first, after = (f"{key_of(n * self.per_shard)}.png" for n in (shard, shard + 1))
        if first not in held or after in held or not held >= {f"{key_of(i)}.png" for i in images}:
            return False
        try:
            (data,) = self.folder.read(shard, [first])
        except FileNotFoundError:  # its process has just thrown it away
            return False
        return read_picture(io.BytesIO(data), self.folder.shard(shard)).info.get("rcg-run") == run

    def _missing(self, num_images: int, run: str, resume: bool) -> tuple[list[int], list[int]]:
        """The images of this process that are to be drawn, and the shards that are to be packed.

        A shard that was the last of a shorter run is opened again.
        """
        missing, shards = list[int](), list[int]()
        for shard in self.own(num_images):
            wanted = self.images(shard, num_images)
            if resume and self._holds(shard, wanted, run):
                self.folder.drop(shard)  # killed between packing and clearing up
                continue
            if resume and self.folder.shard(shard).exists():
                self.folder.unpack(shard)
            shards.append(shard)
            missing += [i for i in wanted if not (resume and self._is_done(i, run))]
        return missing, shards

    def _members(self, shard: int, num_images: int) -> list[tuple[str, bytes | None]]:
        members: list[tuple[str, bytes | None]] = []
        for i in self.images(shard, num_images):
            members.append((f"{key_of(i)}.png", None))
            if self.labels:
                members.append((f"{key_of(i)}.cls", str(self.labels[i % len(self.labels)]).encode()))
        return members

    def _whole(self, settings: dict[str, Any]) -> dict[str, Any]:
        return settings | {"images_per_shard": self.per_shard}

    def _inspect(self, whole: dict[str, Any], resume: bool, overwrite: bool) -> list[Path]:
        if single := [p.name for p in sorted(self.out.glob("*.png")) if IMAGE.fullmatch(p.name)]:
            raise UserError(
                f"--out {self.out} holds single images ({single[0]}); leave --shards out, or choose another."
            )
        return self.folder.inspect(whole, resume=resume, overwrite=overwrite)

    def claim(self, settings: dict[str, Any], *, model: str, resume: bool, overwrite: bool) -> None:
        """Make the folder this run's, before a single image is drawn. See `SamplingFolder.claim`."""
        whole = self._whole(settings)
        with claimed(self.out, shared=self.share.world > 1, run=whole):
            self.folder.claim(model, whole, self._inspect(whole, resume, overwrite))

    def is_grid_ready(self, num_images: int, settings: dict[str, Any]) -> bool:
        """Whether all images of the grid are there."""
        count, run = min(num_images, GRID_IMAGES), run_id(settings)
        return all(self._holds(n, self.images(n, count), run) for n in range(-(-count // self.per_shard)))

    def fill(
        self,
        num_images: int,
        settings: dict[str, Any],
        draw: Callable[[Sequence[int]], list[Image.Image]],
        *,
        model: str,
        batch_size: int,
        resume: bool,
        overwrite: bool,
        on_images: Callable[[int], None] = lambda count: None,
        grid: bool = True,
    ) -> None:
        """Draw this process's share and pack it; the first process also makes the grid. See `SamplingFolder.fill`."""
        whole = self._whole(settings)
        with claimed(self.out, shared=self.share.world > 1, run=whole):
            remove = self._inspect(whole, resume, overwrite)
            run = run_id(settings)  # the images do not depend on the shards
            todo, shards = self._missing(num_images, run, resume)
            done = self.count(num_images) - len(todo)
            on_images(done)
            if not todo:
                self.folder.claim(model, whole, remove)
            for start in range(0, len(todo), batch_size):
                indices = todo[start : start + batch_size]
                images = draw(indices)
                if start == 0:  # not before: what fails at once leaves the folder as it was
                    self.folder.claim(model, whole, remove)
                for i, image in zip(indices, images, strict=True):
                    self.folder.keep(i // self.per_shard, f"{key_of(i)}.png", png_bytes(image, {"rcg-run": run}))
                on_images(done := done + len(indices))
                after = todo[start + batch_size] if start + batch_size < len(todo) else None
                while shards and (after is None or shards[0] < after // self.per_shard):
                    self.folder.pack(shard := shards.pop(0), self._members(shard, num_images))
            for shard in shards:  # all drawn, but killed before they were packed
                self.folder.pack(shard, self._members(shard, num_images))
            if grid and self.share.rank == 0:
                self.write_grid(num_images, run)

    def write_grid(self, num_images: int, run: str, patience: float = PATIENCE_S) -> None:
        """grid.png: the first images (at most 64), once other processes have made theirs.

        Raises:
            UserError: one of their shards does not appear for `patience` seconds.
        """
        count = min(num_images, GRID_IMAGES)
        images: list[Image.Image] = []
        for shard in range(-(-count // self.per_shard)):
            since = time.monotonic()
            wanted = self.images(shard, count)
            while not self._holds(shard, wanted, run):
                if time.monotonic() - since > patience:
                    raise UserError(
                        f"the shard {self.folder.shard(shard).name} of another process is missing; "
                        "run all processes again with --resume."
                    )
                time.sleep(0.2)
            packed = self.folder.read(shard, [f"{key_of(i)}.png" for i in wanted])
            images += [read_picture(io.BytesIO(data), self.folder.shard(shard)) for data in packed]
        save_png(self.out / GRID, make_grid(images), {"rcg-run": run})
