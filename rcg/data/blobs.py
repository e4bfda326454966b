"""Files that hold many images, read by ranges where they lie: on a disk, or in an object store through fsspec."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from rcg.core.errors import UserError, first_line

HANDLES = 256 if sys.platform == "linux" else 64
"""Files that are kept open at most, however many shards there are; macOS lets a process open 256 in all."""
AHEAD = 4 << 20
"""Bytes that are read from a store at once, at most, where more is asked for than that."""
GAP = 1 << 20
"""Bytes by which who reads onwards may be off: threads get there in another order, and descriptions lie between images."""
AHEAD_OF = 16
"""Files that are read ahead at once."""
STAMPS = ("ETag", "etag", "blob_id", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""Under which name a store says which version of a file it holds; the first that it knows is taken."""
PACKAGES = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "gcs": "gcsfs"}
"""What to install for the addresses of a store."""
PAUSE = 1.0
"""Seconds before a store that failed is asked once more."""
T = TypeVar("T")


class StoreError(OSError):
    """A store did not give what was asked for, twice; the file may be whole."""


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
        return _ahead(self.where, self.size, self.stamp, os.getpid()).read(offset, length)

    def all(self) -> bytes:
        """The whole file. `OSError`: it cannot be read."""
        files, path = _store(self.where, os.getpid())
        return _as_os_error(lambda: cast(bytes, files.cat_file(path)))

    def open(self) -> BinaryIO:
        """See `Blob.open`."""
        files, path = _store(self.where, os.getpid())
        return cast(BinaryIO, io.BufferedReader(_StoreFile(_as_os_error(lambda: files.open(path, "rb")))))


class _StoreFile(io.RawIOBase):
    """An open file of fsspec's whose reading raises `OSError` only."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = _as_os_error(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _ReadAhead:
    """Ranges of a file in a store: just what is asked for, and ever more, up to `AHEAD`, of one that is read onwards.

    A store answers after a tenth of a second, whatever it is asked; images in the order of the file (the first look at a set,
    caches, evaluation) should not cost one request each, and images at random (training) no more than they are.
    """

    def __init__(self, where: str, size: int) -> None:
        self.where, self.size = where, size
        self._lock = threading.Lock()
        self._start, self._data, self._step, self._end = 0, b"", 0, -2 * GAP

    def _fetch(self, offset: int, length: int) -> bytes:
        files, path = _store(self.where, os.getpid())
        data = _as_os_error(lambda: cast(bytes, files.cat_file(path, start=offset, end=offset + length)))
        if len(data) > length:
            raise StoreError("its server gives whole files where parts are asked for; fetch it and give the copy")
        return data

    def _held(self, offset: int, length: int) -> bytes | None:
        data, start = self._data, self._start
        return (
            data[offset - start : offset - start + length]
            if start <= offset and offset + length <= start + len(data)
            else None
        )

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; threads may share it."""
        with self._lock:
            if (found := self._held(offset, length)) is not None:
                self._end = max(self._end, offset + length)
                return found
            onwards = -GAP <= offset - self._end <= GAP
            self._step = min(AHEAD, max(2 * self._step, 2 * length)) if onwards else 0
            self._end = offset + length
            if self._step > length:  # the others wait: what they want is in it
                data = self._fetch(offset, min(self._step, self.size - offset))
                self._start, self._data = offset, data
                return data[:length]
        return self._fetch(offset, length)


@lru_cache(maxsize=AHEAD_OF)
def _ahead(where: str, size: int, stamp: int, process: int) -> _ReadAhead:
    return _ReadAhead(where, size)


def forget() -> None:
    """Let go what was read ahead."""
    _ahead.cache_clear()


def _as_os_error(do: Callable[[], T]) -> T:
    """What a store gives, which is asked twice at most. Stores raise what their libraries like, this `OSError` only."""
    for last in (False, True):
        try:
            return do()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as e:
            if last:
                raise StoreError(f"{type(e).__name__}: {first_line(e, 200)}") from None
        time.sleep(PAUSE)
    raise AssertionError


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
        package = PACKAGES.get(where.partition("://")[0])
        way_out = f"run: pip install {package}" if package else "install it"
        raise UserError(
            f"{where} needs a package that is missing ({first_line(e, 200).rstrip('.')}); {way_out}."
        ) from None
    except Exception as e:
        raise UserError(
            f"{where} cannot be opened ({first_line(e, 200).rstrip('.')}); give s3://BUCKET/PATH or the like."
        ) from None


def is_remote(spec: str) -> bool:
    """Whether this is an address for fsspec, not a path."""
    return "://" in spec


def _listed(spec: str, look: Callable[[], T]) -> T:
    """What `look` finds at an address; `UserError`: nothing is there, or the store cannot be reached."""
    try:
        return _as_os_error(look)
    except FileNotFoundError:
        raise UserError(f"there is nothing at {spec}; look at its spelling and at your rights.") from None
    except OSError as e:
        raise UserError(
            f"{spec} cannot be read ({first_line(e, 200)}); look at the address and your credentials."
        ) from None


def list_remote(spec: str) -> list[Blob]:
    """What lies at an address: a file, the files of a folder (not of those in it), or what a pattern with * fits.

    Raises:
        UserError: nothing is there, or the store cannot be reached.
    """
    files, path = _store(spec, os.getpid())

    def look() -> dict[str, dict[str, Any]]:
        if has_magic(path):
            found = list(files.glob(path, detail=True).values())
        else:
            found = [files.info(path)]
            found = found if found[0]["type"] == "file" else files.ls(path, detail=True)
        return _files(files, {str(info["name"]): info for info in found})

    protocol = spec.partition("://")[0]
    return [RemoteBlob(address(protocol, name), info) for name, info in _listed(spec, look).items()]


def address(protocol: str, name: str) -> str:
    """The address of what a store lists under a name; that of the web lists addresses."""
    if "://" in name:
        return name
    return f"{protocol}://{name if protocol == 'file' else name.lstrip('/')}"


def _files(store: Any, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files of a listing, by name and in that order; a store that lists no sizes (the web) is asked for each."""
    return {
        name: info if info.get("size") is not None else store.info(name)
        for name, info in sorted(found.items())
        if info["type"] == "file"
    }


def tree_remote(spec: str) -> dict[str, RemoteBlob]:
    """All files below an address, by their paths from there; one listing, see `_files`.

    Raises:
        UserError: nothing is there, or the store cannot be reached.
    """
    files, path = _store(spec, os.getpid())
    protocol = spec.partition("://")[0]

    def look() -> dict[str, dict[str, Any]]:
        found = files.find(path, detail=True)
        if not found and not files.exists(path):
            raise FileNotFoundError
        return _files(files, found)

    found = _listed(spec, look)
    start = path.rstrip("/") + "/" if path.strip("/") else path
    return {
        name.removeprefix(start).lstrip("/"): RemoteBlob(address(protocol, name), info) for name, info in found.items()
    }


def list_local(spec: str) -> list[Blob] | None:
    """The file, or what a pattern with * fits; None of a folder.

    Raises:
        UserError: there is no such thing.
    """
    place = Path(spec)
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
