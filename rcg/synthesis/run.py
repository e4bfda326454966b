"""Filling a folder with shards: each process its share, an image at a time, so that a killed run goes on where it was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.core.parts import Share
from rcg.data.decode import DecodeError, decode
from rcg.sampling.folder import run_id
from rcg.sampling.shard_folder import ShardFolder, key_of
from rcg.synthesis.drawers import Drawer
from rcg.synthesis.plan import Picture, Plan

MANIFEST = "synthesis.json"
REFUSED = "refused"
"""Ending of the mark for an image that the safety checker kept back."""
Format = Literal["jpg", "png"]


@dataclass(frozen=True)
class Storing:
    """How images are kept.

    Attributes:
        format: of the files; JPEG has quality 95 and full colour resolution.
        size: side in pixels of the square that they are made into (short side resized, centre crop); None: as they are.
    """

    format: Format = "jpg"
    size: int | None = None

    def encode(self, image: Image.Image) -> bytes:
        """The bytes of an image file; the same for the same image."""
        if self.size is not None and image.size != (self.size, self.size):
            scale = self.size / min(image.size)
            width, height = (max(self.size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        buffer = io.BytesIO()
        if self.format == "jpg":
            image.save(buffer, "JPEG", quality=95, subsampling=0)
        else:
            image.save(buffer, "PNG")
        return buffer.getvalue()


class Synthesis:
    """One run: its plan, its folder, what draws.

    Args:
        plan: which images.
        drawer: makes them.
        out: the folder; need not exist.
        storing: how images are kept.
        share: this process's part: shards rank, rank + world, …
        model: as it was named.
        resume, overwrite: what to do with shards that are there.

    Raises:
        UserError: a guidance scale that the drawer does not heed.
    """

    def __init__(
        self,
        plan: Plan,
        drawer: Drawer,
        out: Path,
        storing: Storing | None = None,
        share: Share | None = None,
        *,
        model: str = "",
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        if plan.scales and (low := min(plan.scales)) < drawer.least:
            raise UserError(
                f"a guidance scale of {low:g} would be recorded but not heeded: this pipeline is not guided below {drawer.least:g}, "
                "which is off; raise --guidance-scales."
            )
        self.plan, self.drawer = plan, drawer
        self.model, self.resume, self.overwrite = model, resume, overwrite
        self.storing = storing or Storing()
        self.folder = ShardFolder(out, share or Share(), "rcg-synthesize", MANIFEST)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that the shards depend on, as JSON."""
        plan = self.plan
        return {
            "prompts": run_id({"prompts": [[p.name, p.class_name] for p in plan.prompts]}),
            "images_per_caption": plan.count,
            "guidance_scales": list(plan.scales),
            "seed": plan.seed,
            "captions_per_shard": plan.per_shard,
            "format": self.storing.format,
            "image_size": self.storing.size,
            **self.drawer.identity(),
        }

    @property
    def own(self) -> range:
        """The shards of this process."""
        return self.folder.share.of(self.plan.num_shards)

    def claim(self) -> None:
        """Make the folder this run's, for this process's shards.

        Raises:
            UserError: it holds another run, this one without `resume`, or other things; or another process is at work there.
        """
        with self._claimed():
            self._begin()

    def _claimed(self) -> AbstractContextManager[None]:
        return claimed(self.folder.out, shared=self.folder.share.world > 1, run=self.settings)

    def _begin(self) -> None:
        settings = self.settings
        remove = self.folder.inspect(settings, resume=self.resume, overwrite=self.overwrite)
        if self.overwrite:
            self._try()
        self.folder.claim(self.model, settings, remove)

    def _try(self) -> None:
        """Draw one image: what fails at once shall fail before anything is thrown away."""
        for shard in self.own[:1]:
            picture = self.plan.pictures(self.plan.keys(shard)[0])[0]
            self.drawer.draw([picture], [self.plan.prompts[picture.key]])

    @property
    def parts(self) -> int:
        """See `rcg.core.parts.Job`: a part is a shard."""
        return self.plan.num_shards

    def do(self, part: Share) -> None:
        """See `rcg.core.parts.Job`."""
        one = copy(self)  # with the settings at hand: hashing all prompts and weights takes longer than many a part
        folder = ShardFolder(self.folder.out, part, "rcg-synthesize", MANIFEST)
        vars(one).update(settings=self.settings, folder=folder, resume=True, overwrite=False)
        one.run()

    def finish(self) -> None:
        """See `rcg.core.parts.Job`: nothing remains to be done."""

    def run(self, on_images: Callable[[int], None] = lambda count: None) -> int:
        """Make the folder this run's (see `claim`), and this process's shards that are not there yet.

        Args:
            on_images: called with the number of images of this process that are done, each time that there are more.

        Returns:
            how many images of the shards that were finished now the safety checker refused, those that a killed run was
            refused among them.

        Raises:
            UserError: see `claim`.
        """
        with self._claimed():
            self._begin()
            return self._make(on_images)

    def _make(self, on_images: Callable[[int], None]) -> int:
        done = 0
        refused = 0
        for shard in self.own:
            images = len(self.plan.keys(shard)) * self.plan.count
            if not self.folder.shard(shard).exists():
                before = done

                def show(count: int, before: int = before) -> None:
                    on_images(before + count)

                refused += self._fill(shard, show)
                self._pack(shard)
            self.folder.drop(shard)  # of who was killed between packing and clearing up
            done += images
            on_images(done)
        return refused

    def _file(self, picture: Picture, ending: str) -> str:
        return f"{key_of(picture.key)}.{picture.number}.{ending}"

    def _is_refused(self, work: Path, picture: Picture) -> bool:
        return (work / self._file(picture, REFUSED)).exists()

    def _is_made(self, work: Path, picture: Picture) -> bool:
        if self._is_refused(work, picture):
            return True
        try:
            decode((work / self._file(picture, self.storing.format)).read_bytes())
        except (OSError, DecodeError):  # not there, or torn by a power failure
            return False
        return True

    def _fill(self, shard: int, show: Callable[[int], None]) -> int:
        """Draw what is missing of a shard, the images of one guidance scale together; returns how many it lacks, refused."""
        work = self.folder.work(shard)
        pictures = [picture for key in self.plan.keys(shard) for picture in self.plan.pictures(key)]
        missing = [picture for picture in pictures if not self._is_made(work, picture)]
        made = len(pictures) - len(missing)
        show(made)
        for scale in dict.fromkeys(picture.scale for picture in missing):
            same = [picture for picture in missing if picture.scale == scale]
            for start in range(0, len(same), self.drawer.at_once):
                some = same[start : start + self.drawer.at_once]
                images = self.drawer.draw(some, [self.plan.prompts[picture.key] for picture in some])
                for picture, image in zip(some, images, strict=True):
                    ending = REFUSED if image is None else self.storing.format
                    data = b"" if image is None else self.storing.encode(image)
                    self.folder.keep(shard, self._file(picture, ending), data)
                show(made := made + len(some))
        return sum(self._is_refused(work, picture) for picture in pictures)

    def describe(self, key: int, kept: Sequence[Picture]) -> dict[str, Any]:
        """`key.json`: caption, class, and the seed and scale of each image that is there."""
        prompt = self.plan.prompts[key]
        named = {"caption": prompt.text, "class": prompt.class_name}
        images = [
            {"file": f"{p.number}.{self.storing.format}", "seed": p.seed, "guidance_scale": p.scale} for p in kept
        ]
        return {"id": key, "prompt": prompt.name, **{k: v for k, v in named.items() if v is not None}, "images": images}

    def _pack(self, shard: int) -> None:
        work = self.folder.work(shard)
        members: list[tuple[str, bytes | None]] = []
        for key in self.plan.keys(shard):
            pictures = self.plan.pictures(key)
            kept = [p for p in pictures if not self._is_refused(work, p)]
            text = json.dumps(self.describe(key, kept), ensure_ascii=False, allow_nan=False)
            members.append((f"{key_of(key)}.json", text.encode()))
            members += [(self._file(picture, self.storing.format), None) for picture in kept]
        self.folder.pack(shard, members)
