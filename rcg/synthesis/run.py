"""Filling a folder with shards: each process its share, an image at a time, so that a killed run goes on where it was.

Images of an unfinished shard lie in `.000000.work`; when all are there they are packed, in one stroke, into `000000.tar`,
whose bytes do not tell when or in how many parts it was made.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import atomic_file, temporary_path, write_json
from rcg.core.schema import read_json
from rcg.data.decode import DecodeError, decode
from rcg.sampling.folder import Share, run_id
from rcg.synthesis.drawers import Drawer
from rcg.synthesis.plan import Picture, Plan

MANIFEST = "synthesis.json"
SHARD = re.compile(r"(\d{6,})\.tar")
WORK = re.compile(r"\.(\d{6,})\.work")
REFUSED = "refused"
"""Ending of the mark for an image that the safety checker kept back."""
Format = Literal["jpg", "png"]


class Manifest(TypedDict):
    """`synthesis.json`: which run a folder holds.

    Attributes:
        format: 1.
        run: names the run by its settings.
        model: as it was named.
        settings: everything that the shards depend on.
    """

    format: Literal[1]
    run: str
    model: str
    settings: dict[str, Any]


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


def key_name(key: int) -> str:
    """How a prompt is called in the shards."""
    return f"{key:09d}"


class Synthesis:
    """One run: its plan, its folder, what draws.

    Args:
        plan: which images.
        drawer: makes them.
        out: the folder; need not exist.
        storing: how images are kept.
        share: this process's part: shards rank, rank + world, …
    """

    def __init__(
        self, plan: Plan, drawer: Drawer, out: Path, storing: Storing | None = None, share: Share | None = None
    ) -> None:
        self.plan, self.drawer, self.out = plan, drawer, out
        self.storing, self.share = storing or Storing(), share or Share()

    @property
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
        return range(self.share.rank, self.plan.num_shards, self.share.world)

    def _shard(self, shard: int) -> Path:
        return self.out / f"{shard:06d}.tar"

    def _work(self, shard: int) -> Path:
        return self.out / f".{shard:06d}.work"

    def claim(self, model: str, *, resume: bool, overwrite: bool) -> None:
        """Make the folder this run's, for this process's shards.

        Raises:
            UserError: it holds another run, this one without `resume`, or other things.
        """
        settings = self.settings
        found = sorted(p.name for p in self.out.iterdir()) if self.out.is_dir() else []
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder.")
        file = self.out / MANIFEST
        held: Manifest | None = None
        if file.exists():
            held = read_json(file, Manifest, "choose another folder, or delete it")
        ours = [n for n in found if SHARD.fullmatch(n) or WORK.fullmatch(n)]
        if held is None and (strange := [n for n in found if not n.startswith(".")]):
            raise UserError(
                f"--out {self.out} is not empty and holds no rcg-synthesize run ({strange[0]}); choose another."
            )
        if held is None and resume:
            raise UserError(f"there is no run to resume in {self.out}; leave --resume out.")
        differing = [] if held is None else [k for k in settings if held["settings"].get(k) != settings[k]]
        if held is not None and differing and ours and not overwrite:
            what = ", ".join(f"{k} {_short(held['settings'].get(k))}, not {_short(settings[k])}" for k in differing[:3])
            raise UserError(f"--out {self.out} holds another run ({what}); choose another folder or --overwrite.")
        numbers = {n: int((SHARD.fullmatch(n) or WORK.fullmatch(n))[1]) for n in ours}  # type: ignore[index]
        mine = [n for n, i in numbers.items() if i % self.share.world == self.share.rank]
        if mine and not resume and not overwrite:
            raise UserError(f"--out {self.out} already holds shards of this run; add --resume to go on or --overwrite.")
        if overwrite and not resume:
            for name in mine:
                path = self.out / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if held is None or held["settings"] != settings:
            write_json(file, {"format": 1, "run": run_id(settings), "model": model, "settings": settings})

    def run(self, on_images: Callable[[int], None] = lambda count: None) -> int:
        """Make this process's shards that are not there yet.

        Args:
            on_images: called with the number of images of this process that are done, each time that there are more.

        Returns:
            how many images the safety checker refused.
        """
        done = 0
        refused = 0
        for shard in self.own:
            images = len(self.plan.keys(shard)) * self.plan.count
            if not self._shard(shard).exists():
                before = done

                def show(count: int, before: int = before) -> None:
                    on_images(before + count)

                refused += self._fill(shard, show)
                self._pack(shard)
            done += images
            on_images(done)
        return refused

    def _file(self, picture: Picture, ending: str) -> str:
        return f"{key_name(picture.key)}.{picture.number}.{ending}"

    def _is_made(self, work: Path, picture: Picture) -> bool:
        if (work / self._file(picture, REFUSED)).exists():
            return True
        try:
            decode((work / self._file(picture, self.storing.format)).read_bytes())
        except (OSError, DecodeError):  # not there, or torn by a power failure
            return False
        return True

    def _fill(self, shard: int, show: Callable[[int], None]) -> int:
        """Draw what is missing of a shard, the images of one guidance scale together."""
        work = self._work(shard)
        work.mkdir(parents=True, exist_ok=True)
        pictures = [picture for key in self.plan.keys(shard) for picture in self.plan.pictures(key)]
        missing = [picture for picture in pictures if not self._is_made(work, picture)]
        made, refused = len(pictures) - len(missing), 0
        show(made)
        for scale in dict.fromkeys(picture.scale for picture in missing):
            same = [picture for picture in missing if picture.scale == scale]
            for start in range(0, len(same), self.drawer.at_once):
                some = same[start : start + self.drawer.at_once]
                images = self.drawer.draw(some, [self.plan.prompts[picture.key] for picture in some])
                for picture, image in zip(some, images, strict=True):
                    ending = REFUSED if image is None else self.storing.format
                    _write(work / self._file(picture, ending), b"" if image is None else self.storing.encode(image))
                    refused += image is None
                show(made := made + len(some))
        return refused

    def describe(self, key: int, kept: Sequence[Picture]) -> dict[str, Any]:
        """`key.json`: caption, class, and the seed and scale of each image that is there."""
        prompt = self.plan.prompts[key]
        named = {"caption": prompt.text, "class": prompt.class_name}
        images = [
            {"file": f"{p.number}.{self.storing.format}", "seed": p.seed, "guidance_scale": p.scale} for p in kept
        ]
        return {"id": key, "prompt": prompt.name, **{k: v for k, v in named.items() if v is not None}, "images": images}

    def _pack(self, shard: int) -> None:
        work = self._work(shard)
        with (
            atomic_file(self._shard(shard)) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for key in self.plan.keys(shard):
                pictures = self.plan.pictures(key)
                kept = [p for p in pictures if not (work / self._file(p, REFUSED)).exists()]
                text = json.dumps(self.describe(key, kept), ensure_ascii=False, allow_nan=False)
                _add(tar, f"{key_name(key)}.json", text.encode())
                for picture in kept:
                    name = self._file(picture, self.storing.format)
                    _add(tar, name, (work / name).read_bytes())
        shutil.rmtree(work)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner, mode and time are always the same
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, but not forced onto the disk: a torn file is recognised and made again."""
    temporary = temporary_path(path)
    temporary.write_bytes(data)
    temporary.replace(path)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
