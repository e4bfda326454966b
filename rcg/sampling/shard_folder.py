"""A folder of shards, 000000.tar … or 000000.parquet …, that several processes fill, each its share, and that is resumed
after a kill.

Files of an unfinished shard lie in `.000000.work`; when all are there they are packed, in one stroke, into `000000.tar`,
whose bytes do not tell when or in how many parts it was made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rcg.core.errors import UserError, first_line
from rcg.core.files import alone, atomic_file, final_name, temporary_path
from rcg.core.parts import Share
from rcg.sampling.containers import Container, TarContainer
from rcg.sampling.folder import begin_run, check_choice, damaged, differences, read_manifest

SHARD = re.compile(r"(\d{6,})\.(tar|parquet)")
WORK = re.compile(r"\.(\d{6,})\.work")


def key_of(number: int) -> str:
    """What an image, or a prompt, is called in its shard."""
    return f"{number:09d}"


class ShardFolder:
    """See the module.

    Args:
        out: the folder; need not exist.
        share: this process's part: shards rank, rank + world, …
        command: what fills it, for messages.
        manifest: name of the file that says which run it holds.
        container: what the shards are; default tar.
    """

    def __init__(
        self, out: Path, share: Share, command: str, manifest: str, container: Container | None = None
    ) -> None:
        self.out, self.share, self.command, self.manifest = out, share, command, manifest
        self.container = container or TarContainer()

    def _owns(self, number: int) -> bool:
        return number % self.share.world == self.share.rank

    def shard(self, number: int) -> Path:
        """Where a finished shard lies."""
        return self.out / f"{number:06d}.{self.container.kind}"

    def work(self, number: int) -> Path:
        """Where the files of an unfinished shard lie."""
        return self.out / f".{number:06d}.work"

    def inspect(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> list[Path]:
        """Whether this process may write its shards into the folder.

        Returns:
            What is to be removed before that: left-overs of a kill, and what `overwrite` throws away.

        Raises:
            UserError: it holds another run, this one without `resume`, or other things; or both are asked for.
        """
        check_choice(resume, overwrite)
        out = self.out
        found = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
        held = read_manifest(out / self.manifest)
        numbers = {n: int(match[1]) for n in found if (match := SHARD.fullmatch(n) or WORK.fullmatch(n))}
        if held is None and (strange := [n for n in found if not n.startswith(".")]):
            raise UserError(
                f"--out {out} is not empty and holds no {self.command} run ({strange[0]}); choose another folder."
            )
        if held is None and resume:
            raise UserError(f"there is no run to resume in {out}; leave --resume out.")
        if (what := differences(held, settings)) and numbers and not overwrite:
            raise UserError(f"--out {out} holds another run ({what}); choose another folder or --overwrite.")
        kind = self.container.kind
        if (other := [n for n in numbers if SHARD.fullmatch(n) and not n.endswith(kind)]) and not overwrite:
            raise UserError(f"--out {out} holds shards that are no .{kind} files ({other[0]}); choose another folder.")
        mine = [n for n, i in numbers.items() if self._owns(i)]
        if mine and not resume and not overwrite:
            raise UserError(f"--out {out} already holds shards of this run; add --resume to go on or --overwrite.")
        left = [
            n
            for n in found
            if (final := final_name(n)) and (match := SHARD.fullmatch(final)) and self._owns(int(match[1]))
        ]
        return [out / name for name in left + (mine if overwrite else [])]

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise `UserError` for what `inspect` refuses whatever the settings, before anything is loaded."""
        held = read_manifest(self.out / self.manifest)
        self.inspect({} if held is None else held["settings"], resume=resume, overwrite=overwrite)

    def claim(self, model: str, settings: dict[str, Any], remove: Iterable[Path] = ()) -> None:
        """Make the folder this run's, after `inspect`, whose result is `remove`.

        The first process that takes it from another run throws away all shards of that, lest one whose own process never
        comes be taken for this run's.
        """
        manifest, gone = self.out / self.manifest, list(remove)
        with alone(manifest):
            if differences(read_manifest(manifest), settings):
                gone += [p for p in self.out.iterdir() if SHARD.fullmatch(p.name) or WORK.fullmatch(p.name)]
            begin_run(manifest, self.share, model, settings, gone)

    def keep(self, number: int, name: str, data: bytes) -> None:
        """Put a file into an unfinished shard: whole or not at all, but not forced onto the disk.

        Who resumes a run must recognise a file that a power failure tore, and make it again.
        """
        path = self.work(number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        temporary.write_bytes(data)
        temporary.replace(path)

    def pack(self, number: int, members: Iterable[tuple[str, bytes | None]]) -> None:
        """Make a shard of its members, in this order; None takes the file of that name from the unfinished shard."""
        work = self.work(number)
        with atomic_file(self.shard(number)) as temporary:
            named = ((name, (work / name).read_bytes() if data is None else data) for name, data in members)
            self.container.write(temporary, named)
        self.drop(number)

    def drop(self, number: int) -> None:
        """Throw away what lies unpacked beside a finished shard."""
        shutil.rmtree(self.work(number), ignore_errors=True)

    def read(self, number: int, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of members of a finished shard; errors as of `holds`, and FileNotFoundError if it is not there."""
        try:
            yield from self.container.read(self.shard(number), names)
        except FileNotFoundError:
            raise
        except self.container.broken as e:
            raise damaged(self.shard(number), first_line(e)) from None

    def unpack(self, number: int) -> None:
        """Turn a finished shard into an unfinished one, which is to hold more."""
        names = self.holds(number)
        for name, data in zip(names, self.read(number, names), strict=True):
            self.keep(number, name, data)

    def holds(self, number: int) -> list[str]:
        """Names of the members of a finished shard; none if it is not there.

        Raises:
            UserError: it is damaged.
        """
        try:
            return self.container.names(self.shard(number))
        except FileNotFoundError:  # or another process has just thrown it away
            return []
        except self.container.broken as e:
            raise damaged(self.shard(number), first_line(e)) from None
