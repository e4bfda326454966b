"""Images of a pipeline in a folder, 000000.png … and grid.png: which belong there, drawing them, going on after a kill.

Image i of a seed is one image, whoever draws it: several processes may fill one folder, each its share, in any order.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import RUN, claimed, final_name, sweep, write_json
from rcg.core.parts import Share
from rcg.core.pictures import make_grid, png_text, save_png
from rcg.core.schema import PICTURES, read_json

MANIFEST = "sampling.json"
GRID = "grid.png"
IMAGE = re.compile(r"(\d{6,})\.png")
GRID_IMAGES = 64
PATIENCE_S = 1800.0
"""How long the first process waits, without a new image, for the other processes' part of the grid."""


class Manifest(TypedDict):
    """`sampling.json`: whose images a folder holds.

    Attributes:
        format: 1.
        run: see `run_id`.
        model: as it was named.
        settings: everything that the images depend on.
    """

    format: Literal[1]
    run: str
    model: str
    settings: dict[str, Any]


def run_id(settings: dict[str, Any]) -> str:
    """Names a run by everything that its images depend on; written into each PNG (text chunk `rcg-run`)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(file: Path) -> Manifest | None:
    """Whose run lies beside a manifest; None where there is none. `UserError` for one that is damaged."""
    return read_json(file, Manifest, "choose another folder, or delete it") if file.exists() else None


def differences(held: Manifest | None, settings: dict[str, Any]) -> str:
    """In which settings a run is another one than that which lies there, in words, the first three; empty for the same."""
    there = settings if held is None else held["settings"]
    found = [f"{k} {_short(there.get(k))}, not {_short(v)}" for k, v in settings.items() if there.get(k) != v]
    return ", ".join(found[:3])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def check_choice(resume: bool, overwrite: bool) -> None:
    """Raise `UserError` where what is there shall be kept and thrown away."""
    if resume and overwrite:
        raise UserError("resume and overwrite exclude each other; choose one.")


def damaged(path: Path, reason: str) -> UserError:
    """The error for a file of a run that cannot be read."""
    return UserError(f"{path} is damaged ({reason}); delete it and run the command again with --resume.")


def read_picture(file: Path | io.BytesIO, path: Path) -> Image.Image:
    """An image of a run, with what it says in its text chunks.

    Args:
        file: its bytes, or where they lie.
        path: of the file that holds it.

    Raises:
        UserError: it is damaged.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError):
        raise damaged(path, "an image in it cannot be decoded") from None


def begin_run(manifest: Path, share: Share, model: str, settings: dict[str, Any], remove: Iterable[Path]) -> None:
    """Make the folder of a manifest a run's, for the process of a share.

    Args:
        manifest: written unless it says the same already.
        share: of the process; one that has all clears up what killed processes left.
        model, settings: see `Manifest`.
        remove: files and folders that go first.
    """
    for path in remove:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    held = read_manifest(manifest)
    if held is None or held["settings"] != settings:
        write_json(manifest, {"format": 1, "run": run_id(settings), "model": model, "settings": settings})
    share.note(manifest.parent)
    if share.world == 1:
        sweep(manifest.parent)


class SamplingFolder:
    """A folder of one run's images.

    Args:
        folder: need not exist.
        share: this process's part.
    """

    def __init__(self, folder: Path, share: Share | None = None) -> None:
        self.folder = folder
        self.share = share or Share()

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.folder / f"{index:06d}.png"

    def _owns(self, name: str) -> bool:
        """Whether the picture `name` is this process's to write; the grid is the first one's."""
        match = IMAGE.fullmatch(name)
        return (int(match[1]) % self.share.world if match else 0) == self.share.rank

    def is_done(self, index: int, run: str) -> bool:
        """Whether image `index` of this very run is there and whole."""
        return (png_text(self.path(index)) or {}).get("rcg-run") == run

    def read(self) -> Manifest | None:
        """Whose images are there; None where nobody wrote it down. `UserError` for a manifest that is none."""
        return read_manifest(self.folder / MANIFEST)

    def inspect(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> list[Path]:
        """Whether this process may write its share into the folder.

        Every process asks for itself, at any time: what counts against it is only images of its own share.

        Returns:
            Files to remove before the first image is written: what `overwrite` throws away, leftovers of a killed run.

        Raises:
            UserError: the folder holds another run, this run without `resume`, or other things; or both are asked for.
        """
        check_choice(resume, overwrite)
        folder = self.folder
        found = sorted(p.name for p in folder.iterdir() if p.name != RUN) if folder.is_dir() else []
        held = self.read()  # after the list, as another process writes the manifest first
        unfinished = {
            n for n in found if (final := final_name(n)) and (final in (MANIFEST, GRID) or IMAGE.fullmatch(final))
        }
        names = [n for n in found if n not in unfinished]
        if held is None and names:
            raise UserError(
                f"--out {folder} is not empty and holds no rcg-sample run ({names[0]}); choose another folder."
            )
        if held is None and resume:
            raise UserError(f"there is no run to resume in {folder}; leave --resume out.")
        if shards := [n for n in names if n.endswith((".tar", ".parquet", ".work"))]:
            raise UserError(f"--out {folder} holds shards ({shards[0]}); add --shards, or choose another folder.")
        images = [n for n in names if IMAGE.fullmatch(n)]
        if strange := [n for n in names if n.lower().endswith(PICTURES) and n != GRID and not IMAGE.fullmatch(n)]:
            raise UserError(
                f"--out {folder} holds pictures that rcg-sample did not write ({strange[0]}); choose another."
            )
        if (what := differences(held, settings)) and images and not overwrite:
            raise UserError(f"--out {folder} holds another run ({what}); choose another folder or --overwrite.")
        own = [n for n in images if self._owns(n)]
        if own and not resume and not overwrite:
            raise UserError(f"--out {folder} already holds images of this run; add --resume to go on or --overwrite.")
        # not the manifest's leftovers: any process may be writing it at this moment
        remove = [n for n in unfinished if (final := final_name(n)) and final != MANIFEST and self._owns(final)]
        remove += own if overwrite else []
        return [folder / n for n in remove]

    def claim(self, settings: dict[str, Any], *, model: str, resume: bool, overwrite: bool) -> None:
        """Make the folder this run's, before a single image is drawn; the arguments are those of `fill`.

        Raises:
            UserError: see `inspect`.
        """
        with claimed(self.folder, shared=self.share.world > 1, run=settings):
            self._begin(settings, model, self.inspect(settings, resume=resume, overwrite=overwrite))

    def _begin(self, settings: dict[str, Any], model: str, remove: list[Path]) -> None:
        begin_run(self.folder / MANIFEST, self.share, model, settings, remove)

    def is_grid_ready(self, num_images: int, settings: dict[str, Any]) -> bool:
        """Whether all images of the grid are there."""
        return all(self.is_done(i, run_id(settings)) for i in range(min(num_images, GRID_IMAGES)))

    def wait_for(self, count: int, run: str, patience: float = PATIENCE_S) -> None:
        """Wait until the first `count` images are there.

        Raises:
            UserError: when none of the missing ones appears for `patience` seconds.
        """
        missing = list(range(count))
        since = time.monotonic()
        while True:
            left = [i for i in missing if not self.is_done(i, run)]
            if not left:
                return
            if len(left) < len(missing):
                missing, since = left, time.monotonic()
            if time.monotonic() - since > patience:
                raise UserError(
                    f"{len(left)} images of other processes are missing (the first is {self.path(left[0]).name}); "
                    "run all processes again with --resume."
                )
            time.sleep(0.2)

    def write_grid(self, num_images: int, run: str) -> None:
        """grid.png: the first images (at most 64) in a square-ish sheet, once they are all there."""
        count = min(num_images, GRID_IMAGES)
        self.wait_for(count, run)
        images = [read_picture(self.path(i), self.path(i)) for i in range(count)]
        save_png(self.folder / GRID, make_grid(images), {"rcg-run": run})

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
        """Draw this process's share and save it; the first process also makes the grid.

        Args:
            num_images: over all processes.
            settings: everything that the images depend on (JSON values).
            draw: numbers of images → the images.
            model, resume, overwrite: see `Manifest` and `inspect`.
            batch_size: how many are drawn at a time.
            on_images: called with the number of images that are done each time that there are more.
            grid: whether the first process waits for what the grid shows, and makes it.

        Raises:
            UserError: see `inspect` and `wait_for`.
        """
        run = run_id(settings)
        with claimed(self.folder, shared=self.share.world > 1, run=settings):
            remove = self.inspect(settings, resume=resume, overwrite=overwrite)
            todo = [i for i in self.share.of(num_images) if not (resume and self.is_done(i, run))]
            done = self.count(num_images) - len(todo)
            on_images(done)
            if not todo:
                self._begin(settings, model, remove)
            for start in range(0, len(todo), batch_size):
                indices = todo[start : start + batch_size]
                images = draw(indices)
                if start == 0:  # not before: what fails at once leaves the folder as it was
                    self._begin(settings, model, remove)
                for i, image in zip(indices, images, strict=True):
                    save_png(self.path(i), image, {"rcg-run": run})
                on_images(done := done + len(indices))
            if grid and self.share.rank == 0:
                self.write_grid(num_images, run)

    def count(self, num_images: int) -> int:
        """How many images this process makes."""
        return len(self.share.of(num_images))
