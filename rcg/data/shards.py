"""WebDataset shards: uncompressed tar files in which one key holds what belongs together.

    000000.tar:  000000000.json  000000000.0.jpg … 000000000.9.jpg  000000001.json …

`key.json` says what the images are (`caption`, `class`), `key.txt` may hold the caption instead; all images of a key are of
that caption. Nothing is unpacked: images are read where they lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.decode import DecodeError, decode
from rcg.data.image_source import IMAGE_SUFFIXES, Groups, ImageSource, listing
from rcg.data.verify import inspect_bytes, verify

BLOCK = 512
"""Bytes; a tar file consists of such blocks and ends in two that are empty."""


def shard_files(place: Path) -> list[Path]:
    """The shards of a folder, in the order of their names, or the one that `place` is; empty where there are none."""
    if place.is_file():
        return [place] if place.suffix == ".tar" else []
    return sorted(p for p in place.iterdir() if p.suffix == ".tar" and not p.name.startswith("."))


@dataclass(frozen=True)
class Member:
    """A file within a shard: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass
class Sample:
    """What a shard holds of one key."""

    images: list[Member] = field(default_factory=list)
    texts: dict[str, Member] = field(default_factory=dict)
    """By ending: "json", "txt"."""


def split_name(name: str) -> tuple[str, str]:
    """Key and ending, as WebDataset splits them: at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return folder + slash + key, ending.lower()


def read_index(shard: Path) -> dict[str, Sample]:
    """What lies where in a shard, by key.

    Raises:
        UserError: it is no plain tar file, is cut off, or has members that are not plain files below it.
    """
    way_out = "make or fetch it again"
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            file.seek(max(0, size - 2 * BLOCK))
            ends_well = size >= 2 * BLOCK and not file.read().strip(b"\0")
        with tarfile.open(shard, "r:") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, ValueError, EOFError) as e:
        raise UserError(f"{shard} is no uncompressed tar file or is damaged ({e}); {way_out}.") from None
    except OSError as e:
        raise UserError(f"{shard} cannot be read ({e.strerror or e}); {way_out}.") from None
    if not ends_well or any(m.offset_data + m.size > size for m in members):
        raise UserError(f"{shard} is cut off, its end is missing; {way_out}.")
    samples: dict[str, Sample] = {}
    seen: set[str] = set()
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise UserError(f"{shard} is unsafe: it has a member that leaves its folder ({member.name!r}); {way_out}.")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise UserError(f"{shard} is unsafe: {member.name!r} in it is no plain file; {way_out}.")
        if path.name.startswith("."):
            continue
        if member.name in seen:
            raise UserError(f"{shard} holds {member.name!r} twice; {way_out}.")
        seen.add(member.name)
        key, ending = split_name(member.name)
        sample = samples.setdefault(key, Sample())
        found = Member(member.name, member.offset_data, member.size)
        if "." + ending.rpartition(".")[2] in IMAGE_SUFFIXES:
            sample.images.append(found)
        elif ending in ("json", "txt"):
            sample.texts[ending] = found
    return samples


def read_description(data: bytes, ending: str, where: str) -> dict[str, Any]:
    """What a `key.json` or `key.txt` says: perhaps `caption` and `class`, texts.

    Raises:
        UserError: it is damaged; names `where`.
    """
    try:
        value = json.loads(data) if ending == "json" else {"caption": data.decode().strip()}
    except (ValueError, RecursionError):
        kind = "valid JSON" if ending == "json" else "UTF-8 text"
        raise UserError(f"{where} is no {kind}; mend or remove it.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object with a caption; mend or remove it.")
    found = {name: value[name] for name in ("caption", "class") if value.get(name) is not None}
    if wrong := [name for name, text in found.items() if not isinstance(text, str)]:
        raise UserError(f"{where}: its {wrong[0]} must be text; mend or remove it.")
    return found


def captions_of(folder: Path, keys: list[str]) -> list[str | None]:
    """The captions that lie as `key.json` or `key.txt` in a folder; None where there is none.

    Raises:
        UserError: a file cannot be read or is damaged.
    """
    captions: list[str | None] = []
    for key in keys:
        caption = None
        for ending in ("json", "txt"):
            file = folder / f"{key}.{ending}"
            if caption is None and file.is_file():
                caption = read_description(file.read_bytes(), ending, str(file)).get("caption")
        captions.append(caption)
    return captions


class ShardSource(ImageSource):
    """The images in WebDataset shards, in the order of shards and of members. Use `rcg.data.sources.open_source`.

    Labels exist when the description of every key names a `class`.
    """

    def __init__(
        self,
        place: Path,
        shards: list[Path],
        *,
        min_size: int = 8,
        progress: bool = True,
        threads: int | None = None,
    ) -> None:
        self.shards = [shard.resolve() for shard in shards]
        self.name = place.resolve().name
        self._handles: dict[int, int] = {}
        self._pid, self._lock = 0, Lock()
        keys, members, stamps, described = self._read_shards()
        names = [f"{self.shards[shard].name}/{member.name}" for shard, member, _ in members]
        if not names:
            raise UserError(f"the shards in {place} hold no images (members key.0.jpg, key.0.png, …); make them again.")
        root = self.shards[0].parent
        findings = verify(
            root,
            names,
            progress=progress,
            threads=threads,
            stamps=stamps,
            look=lambda i: inspect_bytes(self._read(members[i][0], members[i][1])),
        )
        self.skipped = []
        self.members: list[tuple[int, Member]] = []
        sizes, numbers = list[tuple[int, int]](), list[int]()
        digest = hashlib.sha256()
        for name, (shard, member, number), found in zip(names, members, findings, strict=True):
            if found.reason is not None:
                self.skipped.append((name, found.reason))
            elif min(found.width, found.height) < min_size:
                self.skipped.append((name, f"only {found.width}×{found.height} px, less than {min_size}"))
            else:
                self.members.append((shard, member))
                sizes.append((found.width, found.height))
                numbers.append(number)
                digest.update(os.fsencode(name) + b"\0" + found.digest)
        if not self.members:
            raise UserError(f"none of the {len(names)} images in {place} can be used ({listing(self.skipped)}).")
        self.sizes = np.array(sizes, np.int32)
        self.fingerprint = digest.hexdigest()[:32]
        kept, compact = np.unique(np.array(numbers, np.int64), return_inverse=True)
        self._groups = Groups(
            compact.astype(np.int64), [keys[i] for i in kept], [described[i].get("caption") for i in kept]
        )
        self.labels, self.class_names = None, []
        classes = [described[i].get("class") for i in kept]
        if all(classes):
            self.class_names = sorted({str(name) for name in classes})
            order = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([order[str(name)] for name in classes], np.int64)[compact]

    def _read_shards(
        self,
    ) -> tuple[list[str], list[tuple[int, Member, int]], list[tuple[int, int]], list[dict[str, Any]]]:
        """Keys; images as (shard, member, number of its key); their stamps; what is said of each key."""
        place: dict[str, Path] = {}
        members, stamps, described = list[tuple[int, Member, int]](), list[tuple[int, int]](), list[dict[str, Any]]()
        for i, shard in enumerate(self.shards):
            time = shard.stat().st_mtime_ns
            for key, sample in read_index(shard).items():
                if not sample.images:
                    continue
                if key in place:
                    raise UserError(
                        f"the key {key!r} is in {place[key].name} and in {shard.name}, so that its positives are split; "
                        "keep sets of shards in folders of their own."
                    )
                members += [(i, image, len(place)) for image in sample.images]
                stamps += [(image.size, time + image.offset) for image in sample.images]
                place[key] = shard
                said: dict[str, Any] = {}
                for ending in ("txt", "json"):
                    if text := sample.texts.get(ending):
                        said |= read_description(self._read(i, text), ending, f"{shard}: {text.name}")
                described.append(said)
        return list(place), members, stamps, described

    def groups(self) -> Groups:
        """The images of each key."""
        return self._groups

    def _read(self, shard: int, member: Member) -> bytes:
        with self._lock:  # decoding threads come here together
            if self._pid != os.getpid():
                self._handles, self._pid = {}, os.getpid()
            if shard not in self._handles:
                self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._handles[shard], member.size, member.offset)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_handles", "_pid", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles, self._pid, self._lock = {}, 0, Lock()

    def __del__(self) -> None:
        if getattr(self, "_pid", 0) == os.getpid():
            for handle in self._handles.values():
                os.close(handle)

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`.

        Raises:
            UserError: the shard was changed since it was opened.
        """
        shard, member = self.members[index]
        try:
            return decode(self._read(shard, member))
        except (OSError, DecodeError) as e:
            raise UserError(
                f"{member.name} in {self.shards[shard]} could be read when the shards were opened but cannot be now ({e}); "
                "put the shard back, or run the command again."
            ) from None
