"""Where the images of a set are kept: a folder for each class, or WebDataset shards; each image with its record.

The record stands in the image's own file, too (PNG text `rcg-record`): a resumed run goes by that. Images that every attempt
left out are remembered as well, as drawing them again would end in the same way.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from rcg.core.errors import UserError
from rcg.core.files import atomic_file, final_name, sweep, write_json
from rcg.core.parts import Share
from rcg.core.pictures import png_bytes, png_text, save_png
from rcg.core.schema import read_json
from rcg.inversion.choices import Place
from rcg.sampling.folder import run_id
from rcg.sampling.shard_folder import SHARD, ShardFolder

MANIFEST, SETTINGS, OF_SHARDS = "images.jsonl", "set.json", "shards.json"
COMMAND = "rcg-synthesize"
PER_SHARD = 1000


class Store(ABC):
    """Keeps images of a set by their places. `make_set`, which fills it, has `claimed` its folder.

    The names of images that were left out lie in `left-out-RUN-RANK.txt` of each process, as JSON strings.

    Args:
        out: folder of the set; need not exist.
        class_names: by label.
        share: this process's part.

    Raises:
        UserError: two classes of one name.
    """

    def __init__(self, out: Path, class_names: Sequence[str], share: Share | None) -> None:
        self.out, self.class_names, self.share, self.run = out, list(class_names), share or Share(), ""
        self._anew = False
        if again := [name for name, count in Counter(self.class_names).items() if count > 1]:
            raise UserError(f"two classes are called {again[0]!r}, and would be read as one; give each its own name.")

    @abstractmethod
    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse at once what `claim` would refuse whatever the set: for the only process, before it computes anything."""

    @abstractmethod
    def claim(self, settings: dict[str, Any], places: Sequence[Place], *, resume: bool, overwrite: bool) -> None:
        """Make the folder this set's, and name the set by its settings (JSON values).

        Of what is there, `overwrite` (which goes before `resume`) throws away this process's share of `places`, and what is
        no place of the set; others may be drawing theirs.

        Raises:
            UserError: it holds images made with other settings, this set without `resume`, or other things.
        """

    @abstractmethod
    def own(self, places: Sequence[Place]) -> list[Place]:
        """Those places of all of the set's that are this process's share, in the order in which it fills them."""

    @abstractmethod
    def open(self, places: Sequence[Place]) -> list[Place]:
        """Those of its own places that this process is to fill: without what is there or left out."""

    @abstractmethod
    def file(self, place: Place) -> str:
        """Name of an image's file within `out` (within its shard)."""

    @abstractmethod
    def keep(self, place: Place, image: Image.Image, record: dict[str, Any]) -> None:
        """Put an image down; whole or not at all."""

    @abstractmethod
    def close(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """After the last image: records of all that are there, which are also written to `images.jsonl`.

        Images beyond `places`, of a larger set that was gone on with, are among them.
        """

    def leave_out(self, place: Place) -> None:
        """Remember that no attempt made an image that may stay."""
        line = f"\n{json.dumps(self.file(place))}\n"  # a line of its own, whatever a killed process wrote before
        with self._file().open("a", encoding="utf-8") as file:
            file.write(line)

    def left_out(self, places: Sequence[Place]) -> int:
        """How many of these places were left out so far, by any process."""
        return len(self._names() & {self.file(place) for place in places})

    def _write_manifest(self, records: Sequence[dict[str, Any]]) -> None:
        with atomic_file(self.out / MANIFEST) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))

    def _file(self) -> Path:
        return self.out / f"left-out-{self.run}-{self.share.rank:05d}.txt"

    @staticmethod
    def _read(file: Path) -> set[str]:
        found = set()
        for line in file.read_text(encoding="utf-8", errors="ignore").splitlines():
            with suppress(ValueError):  # torn by a kill: it is tried again
                found.add(json.loads(line))
        return {name for name in found if isinstance(name, str)}

    def _names(self) -> set[str]:
        """Those of all processes."""
        return set().union(*(self._read(file) for file in self.out.glob(f"left-out-{self.run}-*.txt")))

    def _known(self) -> set[str]:
        """Those that need not be tried: none where all is made anew; other processes may not have forgotten theirs yet."""
        return set() if self._anew else self._names()

    def _tidy(self) -> None:
        """The same names, in order."""
        if (file := self._file()).exists():
            names = sorted(self._read(file))
            with atomic_file(file) as temporary:
                temporary.write_text("".join(f"{json.dumps(name)}\n" for name in names), encoding="utf-8")

    def _forget(self) -> None:
        """What this process, and processes that there are no more, left out in whatever run."""
        self._anew = True
        for file in self.out.glob(f"left-out-*-{'[0-9]' * 5}.txt"):
            rank = int(file.stem[-5:])
            if rank == self.share.rank or rank >= self.share.world:
                file.unlink(missing_ok=True)


class ClassFolders(Store):
    """See `Store`: `out/CLASS/000000.png` …, without classes `out/000000.png` …

    Args:
        out: the folder; need not exist.
        class_names: by label.
        share: this process's part: places rank, rank + world, …

    Raises:
        UserError: two classes of one name, or one that no folder within `out` can have.
    """

    def __init__(self, out: Path, class_names: Sequence[str], share: Share | None = None) -> None:
        super().__init__(out, class_names, share)
        if bad := [name for name in class_names if not name or name.startswith(".") or {"/", "\\"} & set(name)]:
            raise UserError(f"no folder can be called {bad[0]!r} after its class; rename the class, or write --shards.")

    def file(self, place: Place) -> str:
        """See `Store`."""
        name = f"{place.position:06d}.png"
        return name if place.label is None else f"{self.class_names[place.label]}/{name}"

    def _text(self, name: str) -> dict[str, str]:
        text = png_text(self.out / name) or {}
        return text if text.get("rcg-run") == self.run else {}

    def _held(self) -> dict[str, Any]:
        """The settings of the set that is there, if any."""
        out, file = self.out, self.out / SETTINGS
        found = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.is_dir() else []
        held: dict[str, Any] = {}
        if file.is_file():  # looked for after the listing: another process may just have begun the set
            held = read_json(file, way_out="choose another folder")
        elif found:
            raise UserError(f"{out} is not empty and holds no such set ({found[0]}); choose another folder.")
        return held

    def _images(self) -> dict[str, Path]:
        """By their names within `out`."""
        images = sorted(p for p in self.out.rglob("*.png") if not p.name.startswith("."))
        return {p.relative_to(self.out).as_posix(): p for p in images}

    def _refuse_images(self) -> None:
        raise UserError(f"{self.out} already holds images of a set; add --resume to go on with it or --overwrite.")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """See `Store`."""
        self._held()
        if not resume and not overwrite and self._images():
            self._refuse_images()

    def claim(self, settings: dict[str, Any], places: Sequence[Place], *, resume: bool, overwrite: bool) -> None:
        """See `Store`."""
        out, held, there = self.out, self._held(), self._images()
        differing = [k for k in settings if held.get(k) != settings[k]] if held else []
        if differing and there and not overwrite:
            raise UserError(f"{out} holds images made with other {differing[0]}; choose another folder.")
        others = {self.file(place) for i, place in enumerate(places) if i % self.share.world != self.share.rank}
        images = [path for name, path in there.items() if name not in others]
        if images and not resume and not overwrite:
            self._refuse_images()
        if overwrite:
            self._forget()
            for path in images:
                path.unlink(missing_ok=True)
        if held != settings:
            write_json(out / SETTINGS, settings)
        self.share.note(out)
        self.run = run_id(settings)
        if self.share.world == 1:
            sweep(out)

    def own(self, places: Sequence[Place]) -> list[Place]:
        """See `Store`."""
        return list(places[self.share.rank :: self.share.world])

    def open(self, places: Sequence[Place]) -> list[Place]:
        """See `Store`; what a killed process left half-written of this share is removed."""
        own, left_out = self.own(places), self._known()
        files = {self.file(place) for place in own}
        for path in self.out.rglob(".*.png"):
            if (final := final_name(path.name)) and str(path.with_name(final).relative_to(self.out)) in files:
                path.unlink(missing_ok=True)
        return [place for place in own if (name := self.file(place)) not in left_out and not self._text(name)]

    def keep(self, place: Place, image: Image.Image, record: dict[str, Any]) -> None:
        """See `Store`."""
        save_png(self.out / self.file(place), image, {"rcg-run": self.run, "rcg-record": json.dumps(record)})

    def close(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """See `Store`; complete once all processes are done."""
        self._tidy()
        names = dict.fromkeys(self.file(place) for place in places) | dict.fromkeys(self._images())
        records = [json.loads(text["rcg-record"]) for name in names if (text := self._text(name))]
        self._write_manifest(records)
        return records


class Shards(Store):
    """See `Store`: `out/000000.tar` … with `KEY.png` and `KEY.json`, its record; the classes take turns.

    Args:
        out: the folder; need not exist.
        class_names: by label.
        share: this process's part: shards rank, rank + world, …
        per_shard: images in a shard.
        model: what the generator is called, for the record.

    Raises:
        UserError: two classes of one name.
    """

    def __init__(
        self,
        out: Path,
        class_names: Sequence[str],
        share: Share | None = None,
        per_shard: int = PER_SHARD,
        model: str = "",
    ) -> None:
        super().__init__(out, class_names, share)
        self.per_shard, self.model = per_shard, model
        self.folder = ShardFolder(out, self.share, COMMAND, OF_SHARDS)
        self._lacking = Counter[int]()  # places that each shard waits for

    def _number(self, place: Place) -> int:
        return place.position if place.label is None else place.position * len(self.class_names) + place.label

    def file(self, place: Place) -> str:
        """See `Store`."""
        return f"{self._number(place):09d}.png"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """See `Store`."""
        resume = resume and not overwrite and (self.out / OF_SHARDS).is_file()
        self.folder.check(resume=resume, overwrite=overwrite)

    def claim(self, settings: dict[str, Any], places: Sequence[Place], *, resume: bool, overwrite: bool) -> None:
        """See `Store`."""
        whole = settings | {"images_per_shard": self.per_shard}
        resume = resume and not overwrite and (self.out / OF_SHARDS).is_file()
        remove = self.folder.inspect(whole, resume=resume, overwrite=overwrite)
        if overwrite:
            self._forget()
        self.folder.claim(self.model, whole, remove)
        self.run = run_id(settings)

    def _of_shards(self, places: Iterable[Place]) -> dict[int, list[Place]]:
        found: dict[int, list[Place]] = {}
        for place in sorted(places, key=self._number):
            found.setdefault(self._number(place) // self.per_shard, []).append(place)
        return found

    def own(self, places: Sequence[Place]) -> list[Place]:
        """See `Store`."""
        shards = self._of_shards(places).items()
        return [place for shard, held in shards if shard % self.share.world == self.share.rank for place in held]

    def open(self, places: Sequence[Place]) -> list[Place]:
        """See `Store`. A shard that lacks something (that is wanted since) is opened again."""
        todo: list[Place] = []
        left_out = self._known()
        for shard, own in self._of_shards(p for p in self.own(places) if self.file(p) not in left_out).items():
            held = self._held(shard)
            if held >= {self.file(place) for place in own}:
                self.folder.drop(shard)  # killed between packing and clearing up
                continue
            if held:
                self.folder.unpack(shard)
            missing = [place for place in own if not self._is_kept(shard, place)]
            todo += missing
            self._lacking[shard] = len(missing)
            if not missing:  # killed before it was packed
                self._pack(shard)
        return todo

    def _held(self, shard: int) -> set[str]:
        """Names of what a finished shard of this very set holds: a killed process may not have thrown away another's yet."""
        names = self.folder.holds(shard)
        first = [name for name in names if name.endswith(".png")][:1]
        for data in self.folder.read(shard, first) if first else []:
            with suppress(OSError), Image.open(io.BytesIO(data)) as image:
                if image.info.get("rcg-run") == self.run:
                    return set(names)
        return set()

    def _is_kept(self, shard: int, place: Place) -> bool:
        file = self.folder.work(shard) / self.file(place)
        return (png_text(file) or {}).get("rcg-run") == self.run

    def keep(self, place: Place, image: Image.Image, record: dict[str, Any]) -> None:
        """See `Store`."""
        text = {"rcg-run": self.run, "rcg-record": json.dumps(record)}
        self.folder.keep(self._number(place) // self.per_shard, self.file(place), png_bytes(image, text))
        self._is_done(place)

    def leave_out(self, place: Place) -> None:
        """See `Store`."""
        super().leave_out(place)
        self._is_done(place)

    def _is_done(self, place: Place) -> None:
        """Pack a place's shard, if it was the last that was waited for: a large set is not to lie about in single files."""
        shard = self._number(place) // self.per_shard
        self._lacking[shard] -= 1
        if not self._lacking[shard]:
            self._pack(shard)

    def _pack(self, shard: int) -> None:
        work = self.folder.work(shard)
        members: list[tuple[str, bytes | None]] = []
        for file in sorted(work.glob("[0-9]*.png")):
            text = png_text(file) or {}
            if text.get("rcg-run") != self.run:  # of another set, or torn
                continue
            record = json.loads(text["rcg-record"])
            said = {k: v for k, v in record.items() if v is not None or k != "class"}
            members += [(file.name, None), (f"{file.stem}.json", json.dumps(said).encode())]
        if members:
            self.folder.pack(shard, members)

    def close(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """See `Store`; packs what is not packed."""
        self._tidy()
        records: list[dict[str, Any]] = []
        there = sorted(int(match[1]) for p in self.out.iterdir() if (match := SHARD.fullmatch(p.name)))
        own = self._of_shards(places)
        for shard in [*own, *(number for number in there if number not in own and self._held(number))]:
            if shard % self.share.world == self.share.rank and any(self.folder.work(shard).glob("[0-9]*.png")):
                self._pack(shard)
            names = [name for name in self.folder.holds(shard) if name.endswith(".json")]
            for data in self.folder.read(shard, names) if names else []:
                records.append({"shard": self.folder.shard(shard).name, **json.loads(data)})
        self._write_manifest(records)
        return records
