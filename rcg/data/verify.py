"""Every image file is decoded once to see whether it can be used; what was found is remembered for the next time."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import PIL
from filelock import FileLock
from tqdm import tqdm

from rcg.core.hardware import cores
from rcg.data.decode import DECODE_VERSION, DecodeError, decode_deep, is_dark

_CHUNK = 512
_Known = dict[bytes, tuple[tuple[int, int], "Finding"]]
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size, changed, digest BLOB, width, height, reason, dark)"
)


@dataclass(frozen=True)
class Finding:
    """What is known of one file: its content's digest (empty if it could not be read), its upright size in pixels,
    why it cannot be used, if so, and whether it is dark, see `is_dark`."""

    digest: bytes
    width: int
    height: int
    reason: str | None
    dark: bool = False


def user_cache_dir() -> Path:
    """Where this library remembers things for a user: `RCG_CACHE_DIR`, or `rcg` in the platform's cache folder."""
    if given := os.environ.get("RCG_CACHE_DIR"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rcg"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "rcg"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcg"


def num_threads() -> int:
    """Threads worth starting for decoding: the cores this process may use, at most 16."""
    return min(16, cores())


def inspect(path: Path) -> Finding:
    """Read and decode one image file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return Finding(b"", 0, 0, "not a regular file")
        data = path.read_bytes()
    except OSError as e:
        return Finding(b"", 0, 0, e.strerror or type(e).__name__)
    return inspect_bytes(data)


def inspect_bytes(data: bytes) -> Finding:
    """Decode one image."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        image, deep = decode_deep(data)
    except DecodeError as e:
        return Finding(digest, 0, 0, str(e))
    return Finding(digest, image.width, image.height, None, is_dark(image, deep))


def verify(
    root: Path,
    files: Sequence[str],
    *,
    progress: bool = True,
    threads: int | None = None,
    stamps: Sequence[tuple[int, int]] | None = None,
    look: Callable[[int], Finding] | None = None,
) -> list[Finding]:
    """Inspect files that have not been inspected before, or have changed in size or time since.

    Several processes may call this at once for one folder: one works, the others wait and read what it found. A run
    that is interrupted keeps what it has found so far.

    Args:
        root: the folder, absolute.
        files: paths below `root`.
        progress: show a progress bar while files are decoded.
        threads: decoding threads; default all cores.
        stamps, look: where the images are no files of their own: size and time of each, and what inspects number i.

    Returns:
        A finding for each file, in order.
    """
    look = look or (lambda i: inspect(root / files[i]))
    with _memory(root) as (memory, known):
        stamps = stamps or [_stamp(f"{root}/{file}") for file in files]
        findings: list[Finding | None] = []
        for file, stamp in zip(files, stamps, strict=True):
            remembered = known.get(os.fsencode(file))
            findings.append(remembered[1] if remembered and remembered[0] == stamp else None)
        known.clear()
        todo = iter([i for i, finding in enumerate(findings) if finding is None])
        left = sum(finding is None for finding in findings)
        with (
            warnings.catch_warnings(),  # Pillow's remarks on odd files; what makes a file useless becomes its reason
            ThreadPoolExecutor(threads or num_threads()) as pool,
            tqdm(total=left, desc=f"checking {root.name}", unit="image", disable=not progress or left == 0) as bar,
        ):
            warnings.simplefilter("ignore")
            while chunk := list(islice(todo, _CHUNK)):
                for i, finding in zip(chunk, pool.map(look, chunk), strict=True):
                    findings[i] = finding
                    bar.update()
                _remember(memory, [(os.fsencode(files[i]), stamps[i], findings[i]) for i in chunk])
    return [finding for finding in findings if finding is not None]


def _stamp(path: str) -> tuple[int, int]:
    """Size and the last change, in ns: of the content, or of the file itself, as a copy may bring along an older time."""
    try:
        status = os.stat(path)  # noqa: PTH116 (a string: a million Path objects take their time)
    except OSError:
        return (-1, -1)
    return (status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))


@contextmanager
def _memory(root: Path) -> Iterator[tuple[sqlite3.Connection, _Known]]:
    """The table of findings of one folder, locked, and what it holds; an unusable one means a table that is forgotten."""
    known: _Known = {}
    connection: sqlite3.Connection | None = None
    lock: FileLock | None = None
    folder = user_cache_dir() / "verified"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = os.fsencode(root) + f"\0Pillow {PIL.__version__}, rules {DECODE_VERSION}".encode()
        name = folder / f"{hashlib.sha256(key).hexdigest()[:20]}.sqlite"
        lock = FileLock(name.with_suffix(".lock"))
        lock.acquire()
        connection, known = _open(name)
    except (OSError, NotImplementedError, sqlite3.Error) as e:  # the second of older filelocks: there are no locks
        warnings.warn(
            f"what is found out about the images cannot be remembered in {folder} ({e}), so they will be checked again "
            "next time; set RCG_CACHE_DIR to a folder that can be written.",
            stacklevel=4,
        )
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute(_SCHEMA)
    try:
        yield connection, known
    finally:
        connection.close()
        if lock is not None and lock.is_locked:
            lock.release()


def _open(name: Path) -> tuple[sqlite3.Connection, _Known]:
    """A table, and what it holds; a damaged one is made anew. `sqlite3.Error`: it cannot be used, for instance it is locked."""
    connection = sqlite3.connect(name, timeout=60)
    try:
        connection.execute(_SCHEMA)
        return connection, _recall(connection)
    except sqlite3.DatabaseError as e:
        connection.close()
        code = getattr(e, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if isinstance(e, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
            raise  # of the disk, or of another process that holds it: it may be whole
    name.unlink(missing_ok=True)  # a damaged memory is only a memory
    connection = sqlite3.connect(name, timeout=60)
    connection.execute(_SCHEMA)
    return connection, {}


def _recall(memory: sqlite3.Connection) -> _Known:
    rows = memory.execute(
        "SELECT path, size, changed, digest, width, height, reason, dark FROM files WHERE typeof(path) = 'blob' AND "
        "typeof(digest) = 'blob' AND typeof(width) = 'integer' AND typeof(height) = 'integer'"
    )
    return {
        path: ((size, changed), Finding(d, w, h, reason, bool(dark)))
        for path, size, changed, d, w, h, reason, dark in rows
    }


def _remember(memory: sqlite3.Connection, news: Sequence[tuple[bytes, tuple[int, int], Finding | None]]) -> None:
    rows = [(path, *stamp, f.digest, f.width, f.height, f.reason, f.dark) for path, stamp, f in news if f and f.digest]
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    except sqlite3.Error:  # a full disk: the findings hold for this run all the same
        memory.rollback()
