"""Zip archives of images: read where they lie, by their central directory; nothing is unpacked onto the disk.

An archive of a folder is the source that the folder is: the same order, classes, groups and fingerprint.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from rcg.core.errors import UserError
from rcg.data.blobs import Blob, StoreError
from rcg.data.decode import DecodeError
from rcg.data.image_source import Groups, classes_of, count_unread, group, is_hidden, is_image, keys_of, leaves_folder
from rcg.data.packed import PLACE, Content, Format
from rcg.data.shards import MOST_TEXT, WAY_OUT, read_description

MOST_BYTES = 1 << 30
"""Of an image file; larger ones are taken for bombs."""
SLACK = 512
"""Bytes read beyond a member, as its local header may be longer than the directory lets one expect."""
WITHIN = re.compile(r"\.zip/", re.IGNORECASE)
"""Between an archive's path and a member's, where a name begins with the archive's."""
HEADER = 30
"""Bytes of a local header without name and extra fields."""


def read_directory(blob: Blob) -> list[zipfile.ZipInfo]:
    """The members of an archive that are files.

    Raises:
        UserError: it is no archive, is damaged, or is unsafe: see the messages.
    """
    where = blob.where

    def unsafe(name: str, what: str) -> UserError:
        return UserError(f"{where} is unsafe: {name!r} in it {what}; {WAY_OUT}.")

    try:
        with blob.open() as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, EOFError, OverflowError) as e:
        if isinstance(e.__context__, StoreError):  # which zipfile takes for the end of the file
            raise UserError(f"{where} cannot be read ({e.__context__}); run the command again.") from None
        raise UserError(f"{where} is no zip archive or is damaged ({e}); {WAY_OUT}.") from None
    except OSError as e:
        raise UserError(f"{where} cannot be read ({e.strerror or e}); {WAY_OUT}.") from None
    found, seen = list[zipfile.ZipInfo](), set[str]()
    for member in members:
        name = member.filename
        if leaves_folder(name):
            raise UserError(f"{where} is unsafe: it has a member that leaves its folder ({name!r}); {WAY_OUT}.")
        if member.is_dir():
            continue
        if member.external_attr >> 16 and not _is_plain(member.external_attr >> 16):
            raise unsafe(name, "is no plain file")
        if name in seen:
            raise UserError(f"{where} holds {name!r} twice; {WAY_OUT}.")
        seen.add(name)
        if member.flag_bits & 1:
            raise UserError(f"{where} is encrypted ({name!r}); unpack it and pack it anew without a password.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{where}: {name!r} is compressed by method {member.compress_type}, which is not read; pack it anew with "
                "zip -0 (images do not get smaller anyway)."
            )
        if max(member.file_size, member.compress_size) > MOST_BYTES:
            raise unsafe(name, f"says that it has {member.file_size} bytes (a decompression bomb?)")
        found.append(member)
    end = 0
    for member in sorted(found, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise unsafe(member.filename, "overlaps another member (a decompression bomb?)")
        end = member.header_offset + HEADER + member.compress_size
    if end > blob.size:
        raise UserError(f"{where} is no zip archive or is damaged (members lie behind its end); {WAY_OUT}.")
    return sorted(found, key=lambda member: member.filename)


def _is_plain(mode: int) -> bool:
    return stat.S_IFMT(mode) in (0, stat.S_IFREG)


def place_of(member: zipfile.ZipInfo, number: int) -> tuple[int, int, int, int, int, int, bool]:
    """A `PLACE`; its offset is that of the local header."""
    packed = member.compress_type != zipfile.ZIP_STORED
    return (number, member.header_offset, member.compress_size, member.file_size, member.CRC, 0, packed)


class ZipFormat(Format):
    """Zip archives; names of several ones begin with the archive's.

    Args:
        many: whether there are several.
    """

    kind = "zip"
    arranges = True

    def __init__(self, many: bool = False) -> None:
        self.many = many

    def identity(self) -> dict[str, Any]:
        """See `Format.identity`."""
        return {"kind": self.kind, "classes": "of usable images" + (", below their archives" if self.many else "")}

    def _prefix(self, blob: Blob) -> str:
        return f"{blob.name}/" if self.many else ""

    def contents(self, blob: Blob, number: int) -> Iterator[Content]:
        """See `Format.contents`."""
        found = read_directory(blob)
        members = [m for m in found if is_image(m.filename) and not is_hidden(m.filename)]
        places = np.array([place_of(member, number) for member in members], PLACE)
        unread = count_unread((member.filename for member in found), archives=True)
        yield Content([self._prefix(blob) + member.filename for member in members], places, unread=unread)

    def _inner(self, names: list[str]) -> list[str]:
        """Paths within the archives, without the folders that all images lie in."""
        inner = [WITHIN.split(name, 1)[1] for name in names] if self.many else names
        common = os.path.commonpath([os.path.dirname(name) for name in inner]) if all("/" in n for n in inner) else ""  # noqa: PTH120
        return [name[len(common) + 1 :] for name in inner] if common else inner

    def arrange(self, names: list[str], kept: list[int]) -> tuple[list[str], list[str] | None, bool]:
        """See `Format.arrange`."""
        inner = self._inner(names)
        usable = [inner[i] for i in kept]
        classes = classes_of(usable)
        mixed = classes is None and any("/" in name for name in usable)
        return [names[i] for i in kept] if self.many else usable, classes, mixed

    def groups(self, blobs: list[Blob], names: list[str]) -> Groups | None:
        """Files `key.0.jpg`, `key.1.jpg`, … belong together; `key.json` or `key.txt` beside them holds their caption."""
        keys = keys_of(names)
        if keys is None:
            return None
        numbers, unique = group(keys)
        said, known = dict[str, str](), set(unique)
        for number, blob in enumerate(blobs):
            members = read_directory(blob)
            images = [m.filename for m in members if is_image(m.filename) and not is_hidden(m.filename)]
            cut = len(images[0]) - len(self._inner(images)[0]) if images and not self.many else 0
            for member in members:
                stem, _, ending = member.filename.rpartition(".")
                key = self._prefix(blob) + stem[cut:]
                if (
                    ending in ("json", "txt")
                    and key in known
                    and member.file_size <= MOST_TEXT
                    and (ending == "json" or key not in said)
                ):
                    place = np.array([place_of(member, number)], PLACE)[0]
                    where = f"{blob.where}: {member.filename}"
                    try:
                        text = read_description(self.read(blob, place), ending, where).get("caption")
                    except (OSError, DecodeError) as e:
                        raise UserError(f"{where} cannot be read ({e}); {WAY_OUT}.") from None
                    said |= {} if text is None else {key: text}
        return Groups(numbers, unique, [said.get(key) for key in unique])

    def read(self, blob: Blob, place: Any) -> bytes:
        """See `Format.read`."""
        start, stored, size = int(place["offset"]), int(place["stored"]), int(place["size"])
        data = blob.read(start, min(blob.size - start, HEADER + stored + SLACK))
        if data[:4] != b"PK\x03\x04":
            raise DecodeError("its local header is damaged")
        begin = HEADER + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        if begin + stored > len(data):
            if start + begin + stored > blob.size:
                raise DecodeError("its local header is damaged")
            data += blob.read(start + len(data), begin + stored - len(data))
        data = data[begin : begin + stored]
        if place["packed"]:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                data = inflate.decompress(data, size + 1)
            except zlib.error as e:
                raise DecodeError(f"it cannot be unpacked ({e})") from None
        if len(data) != size or zlib.crc32(data) != int(place["extra"]):
            raise DecodeError("it is damaged (its checksum is another)")
        return data
