"""WebDataset shards: uncompressed tar files in which one key holds what belongs together.

    000000.tar:  000000000.json  000000000.0.jpg … 000000000.9.jpg  000000001.json …

`key.json` says what the images are (`caption`, `class`), `key.txt` may hold the caption and `key.cls` the class instead; all
images of a key are of that caption. Nothing is unpacked: images are read where they lie.

A key's images are its numbered ones (`key.0.jpg`) and one other: `key.jpg` before `key.image.jpg` before `key.seg.jpg`, and of two
such the one that is no PNG, as masks are; the rest are masks and the like and are left out.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rcg.core.errors import UserError
from rcg.data.blobs import Blob
from rcg.data.image_source import count_unread, is_image, leaves_folder
from rcg.data.packed import PLACE, Content, Format, bounded

BLOCK = 512
"""Bytes; a tar file consists of such blocks and ends in two that are empty."""
NUMBERS = re.compile(r"\d+(\.\d+)*")
"""Between the key and the ending of a numbered image."""
USUAL = ("image", "img")
"""The same of an image that has a name."""
TEXT_ENDINGS = ("cls", "txt", "json")
MOST_TEXT = 1 << 20
"""Bytes of a description, at most."""
WAY_OUT = "make or fetch it again"


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
    unread: Counter[str] = field(default_factory=Counter)
    """See `count_unread`."""
    texts: dict[str, Member] = field(default_factory=dict)
    """By ending: one of `TEXT_ENDINGS`."""


def split_name(name: str) -> tuple[str, str]:
    """Key and ending, as WebDataset splits them: at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return folder + slash + key, ending.lower()


def read_index(shard: Blob) -> dict[str, Sample]:
    """What lies where in a shard, by key.

    Raises:
        UserError: it is no plain tar file, is cut off, or has members that are not plain files below it.
    """
    where, size = shard.where, shard.size
    try:
        tail = min(size, 2 * BLOCK)
        ends_well = size >= 2 * BLOCK and not shard.read(size - tail, tail).strip(b"\0")
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members, end = tar.getmembers(), tar.offset
        ends_well &= end + BLOCK <= size
        if ends_well and shard.read(end, BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"bad header at byte {end}")
    except (tarfile.TarError, ValueError, EOFError) as e:
        raise UserError(f"{where} is no uncompressed tar file or is damaged ({e}); {WAY_OUT}.") from None
    except OSError as e:
        raise UserError(f"{where} cannot be read ({e.strerror or e}); {WAY_OUT}.") from None
    if not ends_well or any(m.offset_data + m.size > size for m in members):
        raise UserError(f"{where} is cut off, its end is missing; {WAY_OUT}.")
    samples: dict[str, Sample] = {}
    seen: set[str] = set()
    for member in members:
        if leaves_folder(member.name):
            raise UserError(f"{where} is unsafe: it has a member that leaves its folder ({member.name!r}); {WAY_OUT}.")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise UserError(f"{where} is unsafe: {member.name!r} in it is no plain file; {WAY_OUT}.")
        if member.name.rpartition("/")[2].startswith("."):
            continue
        if member.name in seen:
            raise UserError(f"{where} holds {member.name!r} twice; {WAY_OUT}.")
        seen.add(member.name)
        key, ending = split_name(member.name)
        sample = samples.setdefault(key, Sample())
        found = Member(member.name, member.offset_data, member.size)
        if is_image(member.name):
            sample.images.append(found)
        elif ending in TEXT_ENDINGS:
            sample.texts[ending] = found
        else:
            sample.unread.update(count_unread([member.name]))
    return samples


def choose_images(images: list[Member]) -> list[Member]:
    """Which of the images of a key, in their order, are meant: see above."""

    def rank(member: Member) -> tuple[int, bool, str]:
        between, _, ending = split_name(member.name)[1].rpartition(".")
        return (0 if not between else 1 if between in USUAL else 2), ending == "png", member.name

    chosen = {m.name for m in images if NUMBERS.fullmatch(split_name(m.name)[1].rpartition(".")[0])}
    best = min((m for m in images if m.name not in chosen), key=rank, default=None)
    if best and (not chosen or rank(best)[0] == 0):
        chosen.add(best.name)
    return [member for member in images if member.name in chosen]


NAMES = {"txt": "caption", "cls": "class"}


def read_description(data: bytes, ending: str, where: str) -> dict[str, Any]:
    """What a `key.json`, `key.txt` or `key.cls` says: perhaps `caption` and `class`, texts.

    Raises:
        UserError: it is damaged; names `where`.
    """
    try:
        value = json.loads(data) if ending == "json" else {NAMES[ending]: data.decode().strip() or None}
    except (ValueError, RecursionError):
        kind = "valid JSON" if ending == "json" else "UTF-8 text"
        raise UserError(f"{where} is no {kind}; mend or remove it.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object with a caption; mend or remove it.")
    found = {name: value[name] for name in ("caption", "class") if value.get(name) is not None}
    if wrong := [name for name, text in found.items() if not isinstance(text, str)]:
        raise UserError(f"{where}: its {wrong[0]} must be text; mend or remove it.")
    return found


def captions_of(read: Callable[[str], bytes | None], where: str, keys: list[str]) -> list[str | None]:
    """The captions that lie as `key.json` or `key.txt` beside single images; None where there is none.

    Args:
        read: the bytes of a file, None if it is not there.
        where: they lie, for messages.
        keys: of the groups.

    Raises:
        UserError: a file is damaged.
    """
    captions: list[str | None] = []
    for key in keys:
        caption = None
        for ending in ("json", "txt"):
            name = f"{key}.{ending}"
            if caption is None and (data := read(name)) is not None:
                caption = read_description(data, ending, f"{where.rstrip('/')}/{name}").get("caption")
        captions.append(caption)
    return captions


class ShardFormat(Format):
    """WebDataset shards. Labels exist when every key has a `class` in its description, or a `key.cls`."""

    kind = "shards"

    def contents(self, blob: Blob, number: int) -> Iterator[Content]:
        """See `Format.contents`."""
        members, keys, classes = list[Member](), list[str](), list[str | None]()
        captions: dict[str, str] = {}
        unread, beside = Counter[str](), Counter[str]()
        for key, sample in read_index(blob).items():
            if not sample.images:
                unread += sample.unread
                continue
            images = sample.images if len(sample.images) == 1 else choose_images(sample.images)
            beside.update(f".{split_name(m.name)[1]}" for m in sample.images if m not in images)
            said: dict[str, Any] = {}
            for ending in TEXT_ENDINGS:
                if text := sample.texts.get(ending):
                    said |= _describe(blob, text, ending)
            members += images
            keys += [key] * len(images)
            classes += [said.get("class")] * len(images)
            if "caption" in said:
                captions[key] = said["caption"]
        places = np.zeros(len(members), PLACE)
        places["file"] = number
        places["offset"] = [member.offset for member in members]
        places["size"] = places["stored"] = bounded(np.array([member.size for member in members], np.int64))
        names = [f"{blob.name}/{member.name}" for member in members]
        yield Content(names, places, classes, keys, captions, unread, beside)


def _describe(blob: Blob, text: Member, ending: str) -> dict[str, Any]:
    where = f"{blob.where}: {text.name}"
    if text.size > MOST_TEXT:
        raise UserError(f"{where} has {text.size} bytes, too many for a description; mend or remove it.")
    try:
        return read_description(blob.read(text.offset, text.size), ending, where)
    except OSError as e:
        raise UserError(f"{where} cannot be read ({e.strerror or e}); {WAY_OUT}.") from None
