"""Files that hold many images, read by ranges where they lie: on a disk, or in an object store through fsspec."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from rcg.core.errors import UserError

HANDLES = 64
"""Files that are kept open at most, however many shards there are."""
STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""Under which name a store says which version of a file it holds; the first that it knows is taken."""
T = TypeVar("T")


class Blob(ABC):
    """A file, read by ranges. Threads and processes may share it, and it can be pickled.

    Attributes:
        where: full path or address.
        name: last part of it.
        size: bytes.
        stamp: changes when the file does; at most 63 bits.
    """

    where: str
    name: str
    size: int
    stamp: int

    @abstractmethod
    def _range(self, offset: int, length: int) -> bytes:
        """At most `length` bytes."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """The file, to be read from its start; `OSError` when it cannot be."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on.

        Raises:
            OSError: it cannot be read, or ends before.
        """
        parts = [self._range(offset, length)] if length else []
        while parts and parts[-1] and sum(map(len, parts)) < length:
            done = sum(map(len, parts))
            parts.append(self._range(offset + done, length - done))
        data = b"".join(parts)
        if len(data) != length:
            raise OSError("the file has become shorter")
        return data


class _Handle:
    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@lru_cache(maxsize=HANDLES)
def _handle(path: str, size: int, stamp: int) -> _Handle:
    """An open file; closed when it is among the last no more and nobody reads from it. `pread` moves no shared offset."""
    return _Handle(path)


class LocalBlob(Blob):
    """A file on this machine.

    Args:
        path: of the file.
        name: shown to people; default its own.

    Raises:
        UserError: it cannot be looked at.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path.resolve()
        self.where, self.name = str(self.path), name or path.name
        try:
            status = self.path.stat()
        except OSError as e:
            raise UserError(f"{path} cannot be read ({e.strerror}); mend or remove it.") from None
        self.size, self.stamp = status.st_size, status.st_mtime_ns

    def _range(self, offset: int, length: int) -> bytes:
        handle = _handle(self.where, self.size, self.stamp)  # held while it is read from, whoever else lets it go
        return os.pread(handle.number, length, offset)

    def open(self) -> BinaryIO:
        """See `Blob.open`."""
        return self.path.open("rb")


class RemoteBlob(Blob):
    """A file in a store that fsspec reaches.

    Args:
        where: its address, such as s3://bucket/shards/000000.tar.
        info: what the store's listing says of it.
    """

    def __init__(self, where: str, info: dict[str, Any]) -> None:
        self.where, self.name = where, where.rpartition("/")[2]
        self.size = int(info.get("size") or 0)
        known = next((str(info[key]) for key in STAMPS if info.get(key) is not None), "")
        digest = hashlib.blake2b(f"{self.size} {known}".encode(), digest_size=6).digest()
        self.stamp = int.from_bytes(digest, "big")

    def _range(self, offset: int, length: int) -> bytes:
        files, path = _store(self.where, os.getpid())
        return _as_os_error(lambda: cast(bytes, files.cat_file(path, start=offset, end=offset + length)))

    def open(self) -> BinaryIO:
        """See `Blob.open`."""
        files, path = _store(self.where, os.getpid())
        return _as_os_error(lambda: cast(BinaryIO, files.open(path, "rb")))


def _as_os_error(do: Callable[[], T]) -> T:
    """Stores raise what their libraries like."""
    try:
        return do()
    except OSError:
        raise
    except Exception as e:
        raise OSError(f"{type(e).__name__}: {_first_line(e)}") from None


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]


@lru_cache(maxsize=4096)
def _store(where: str, process: int) -> tuple[Any, str]:
    """The store of an address, and the path in it. A forked process makes its own connections."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{where} needs a package that is missing; run: pip install fsspec.") from None
    try:
        return cast(tuple[Any, str], url_to_fs(where))
    except ImportError as e:
        raise UserError(
            f"{where} needs a package that is missing ({_first_line(e).rstrip('.')}); install it, for s3 by: "
            "pip install 'rcg[s3]'."
        ) from None
    except Exception as e:
        raise UserError(
            f"{where} cannot be opened ({_first_line(e).rstrip('.')}); give s3://BUCKET/PATH or the like."
        ) from None


def is_remote(spec: str) -> bool:
    """Whether this is an address for fsspec, not a path."""
    return "://" in spec


def list_remote(spec: str) -> list[Blob]:
    """What lies at an address: a file, the files of a folder (not of those in it), or what a pattern with * fits.

    Raises:
        UserError: nothing is there, or the store cannot be reached.
    """
    files, path = _store(spec, os.getpid())
    protocol = spec.partition("://")[0]

    def look() -> list[dict[str, Any]]:
        if has_magic(path):
            return list(files.glob(path, detail=True).values())
        found = files.info(path)
        return [found] if found["type"] == "file" else list(files.ls(path, detail=True))

    try:
        found = [info for info in _as_os_error(look) if info["type"] == "file"]
    except FileNotFoundError:
        raise UserError(f"there is nothing at {spec}; look at its spelling and at your rights.") from None
    except OSError as e:
        raise UserError(
            f"{spec} cannot be read ({_first_line(e)}); look at the address and your credentials."
        ) from None
    if protocol == "https" or protocol == "http":
        return [RemoteBlob(str(info["name"]), info) for info in found]
    return [RemoteBlob(f"{protocol}://{str(info['name']).lstrip('/') if protocol != 'file' else info['name']}", info)
            for info in sorted(found, key=lambda info: str(info["name"]))]  # fmt: skip


def list_local(spec: str) -> list[Blob] | None:
    """The file, or what a pattern with * fits; None of a folder.

    Raises:
        UserError: there is no such thing.
    """
    place = Path(spec).expanduser()
    if place.is_dir():
        return None
    if place.is_file():
        return [LocalBlob(place)]
    if not place.exists() and has_magic(spec):
        found = [Path(p) for p in sorted(glob(str(place))) if Path(p).is_file()]  # noqa: PTH207 (absolute patterns)
        if not found:
            raise UserError(f"no file fits {spec!r}; look at its spelling.")
        return [LocalBlob(p) for p in found]
    return []
