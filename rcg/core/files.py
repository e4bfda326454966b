"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from rcg.core.errors import UserError
from rcg.core.schema import IMPOSSIBLE, Target

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Give a full disk its own error: safetensors and torch report it as a plain message."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        if "No space left on device" in str(e) or "os error 28" in str(e):
            raise OSError(errno.ENOSPC, "No space left on device") from e
        raise


@contextmanager
def _usable(path: Path, kind: Literal["folder", "file"]) -> Iterator[None]:
    """Begin to write to `path`: `UserError` where that cannot be; a lack of room or of permission is the system's to tell."""
    if text := Target(kind).problem(path):
        raise UserError(f"{path} {text}.")
    try:
        yield
    except OSError as e:
        if e.errno not in IMPOSSIBLE:
            raise
        raise UserError(f"{path} cannot be used ({e.strerror}); give another path.") from None


def temporary_path(path: Path) -> Path:
    """A free name beside `path` to write under before the rename; `final_name` recognises it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{path.suffix}")


def final_name(name: str) -> str | None:
    """The name that a file called `name` would have got in the end, if a `temporary_path` is what it is."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}(\.[^.]+)?", name)
    return match[1] if match and Path(match[1]).suffix == (match[2] or "") else None


def _lock(number: int, shared: bool = False) -> bool | None:
    """Lock an open file or folder for this process, without waiting; false if another holds it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # of a file system that has none
        return None
    return True


@contextmanager
def claimed(folder: Path, shared: bool = False, run: Any = None) -> Iterator[None]:
    """Within the block, nobody else who asks so may write into `folder`; it is made, and removed again if it stays empty.

    The system lets go of the folder when the process ends, however that comes about. A process that stands still keeps it.

    Args:
        folder: of the results.
        shared: let others in that ask for the same, the processes of one run.
        run: if shared, the settings by which processes of one run know each other, as JSON: nobody is let in who has others.
            None: whoever shares is let in.

    Raises:
        UserError: another process is at work there, or no folder can be there.
    """
    number, new = _open_locked(folder, shared)
    try:
        if not shared:  # then nobody is there, but perhaps what a killed process left
            (folder / RUN).unlink(missing_ok=True)
        with _joined(folder, run) if shared and run is not None else nullcontext():
            yield
    finally:
        if new and _lock(number) is not False:
            with suppress(OSError):
                folder.rmdir()
        os.close(number)


def _open_locked(folder: Path, shared: bool) -> tuple[int, bool]:
    """A folder, made if need be, open and locked; and whether it is new."""
    patience = time.monotonic() + shared * 1.0  # one that shares it may be removing it, for an instant
    while True:
        with _usable(folder, "folder"):
            new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
        try:
            number = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        locked = _lock(number, shared)
        if locked is not False and _is_at(number, folder):
            return number, new
        os.close(number)
        if locked is False and time.monotonic() >= patience:
            raise UserError(
                f"another process is writing into {folder}; wait until it is done, end it, or choose another folder."
            )
        time.sleep(0.01)


RUN = ".run"
"""In a folder that several processes write into: which run is theirs (see `claimed`). It goes with the last of them."""
_JOINING_S = 30.0


@contextmanager
def _joined(folder: Path, run: Any) -> Iterator[None]:
    """Be one of the processes of a run that write into a folder."""
    file, name = folder / RUN, hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    number = _enter(file, name)
    if number is None:
        yield
        return
    try:
        if os.pread(number, len(name) + 1, 0) != name.encode():
            raise _other_run(folder)
        yield
    finally:
        fcntl.flock(number, fcntl.LOCK_UN)
        if _lock(number) and _is_at(number, file):  # the last one
            file.unlink()
        os.close(number)


def _enter(file: Path, run: str) -> int | None:
    """The file that says which run is at work, open, and locked so that it cannot change; None where there are no locks.

    Who finds nobody at work, which is who can lock it for himself, writes his run into it.
    """
    patience = time.monotonic() + _JOINING_S
    while time.monotonic() < patience:
        number = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        alone = _lock(number)
        if alone is None:
            os.close(number)
            file.unlink(missing_ok=True)
            return None
        if alone:
            os.ftruncate(number, 0)
            os.pwrite(number, run.encode(), 0)
        if _lock(number, shared=True) and _is_at(number, file):
            return number
        os.close(number)  # another one is looking, for an instant, or has just removed it
        time.sleep(0.01)
    raise _other_run(file.parent)


def _other_run(folder: Path) -> UserError:
    return UserError(f"another run is writing into {folder}; wait until it is done, end it, or choose another folder.")


def _is_at(number: int, file: Path) -> bool:
    """Whether an open file is the one that lies at a path now."""
    try:
        return os.path.samestat(os.fstat(number), file.stat())
    except FileNotFoundError:
        return False


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for the file that lies here.

    Who replaces the file within the block has done so before the others go on. Nobody waits where there is no file, or where
    the system has no locks.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            held = stack.enter_context(file.open("rb+"))
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


def reserve(file: Path) -> None:
    """Have the disk keep room for all of a file with holes, where it can; else who writes to a map of it dies of a full disk.

    Raises:
        OSError: there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("rb+") as f:
        try:
            os.posix_fallocate(f.fileno(), 0, os.fstat(f.fileno()).st_size)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):  # an empty file; a disk that cannot
                raise


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder and below; only for who has `claimed` it alone."""
    for path in sorted(folder.rglob(".*")):
        if final_name(path.name.removesuffix(".old")) is None:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that is whole until it is gone: killed meanwhile, it lies under a name that `sweep` knows."""
    dying = temporary_path(folder)
    folder.rename(dying)
    shutil.rmtree(dying)


def _sweep_beside(path: Path) -> None:
    """Remove unfinished folders that killed processes left beside `path`, on its place."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if final_name(left.name.removesuffix(".old")) != path.name or not left.is_dir():
            continue
        with suppress(OSError):  # somebody is at work in it; or there are no locks, and nobody can tell
            number = os.open(left, os.O_RDONLY)
            try:
                if fcntl is not None:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(number)


def _new_beside(path: Path) -> tuple[Path, int]:
    """A temporary folder beside `path`, open and locked, which shows others that somebody is at work in it."""
    while True:
        temporary = temporary_path(path)
        temporary.mkdir()
        with suppress(FileNotFoundError):  # before it was locked, another one took it for a dead process's
            held = os.open(temporary, os.O_RDONLY)
            if _lock(held) is not False and _is_at(held, temporary):
                return temporary, held
            os.close(held)


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one move; false where the system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    at_cwd, exchange = -100, 2
    return call is not None and call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0


def _put(new: Path, path: Path) -> None:
    """Rename a folder to `path`, where another one may lie, and others may do the same at this moment: the last one stays."""
    while True:
        if path.exists():
            if _exchange(new, path):
                return
            with suppress(FileNotFoundError):  # another one was faster
                shutil.rmtree(path.rename(f"{temporary_path(path)}.old"))
        try:
            new.rename(path)
            return
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`, on any error remove it.

    Raises:
        UserError: at once, where no file can be.
    """
    temporary = temporary_path(path)
    with _usable(path, "file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            temporary.lstat()  # its name may be too long
    try:
        with _disk_errors():
            yield temporary
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success fsync its files and rename it to `path` (replacing it).

    What killed processes left unfinished beside `path` goes.

    Raises:
        UserError: at once, where no folder can be.
    """
    with _usable(path, "folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_beside(path)
        temporary, held = _new_beside(path)
    try:
        with _disk_errors():
            yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as f:
                    os.fsync(f.fileno())
        _put(temporary, path)
        _fsync_folder(path.parent)
    finally:
        os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)


def export_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, then move each file into `folder`, replacing its namesakes.

    The other contents of `folder` stay. If `write` fails, `folder` is untouched.
    """
    with atomic_folder(folder / ".export") as temporary:
        write(temporary)
    exported = folder / ".export"
    for file in sorted(exported.rglob("*"), key=lambda p: (p.suffix == ".json", p)):  # weights first, configs last
        if file.is_file():
            target = folder / file.relative_to(exported)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    shutil.rmtree(exported)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def keep_lines(path: Path, wanted: Callable[[Any], bool]) -> None:
    """Of a file with a JSON value in each line, if there is one, keep the lines that are wanted, up to one that a kill cut short."""
    if not path.is_file():
        return
    before, kept = path.read_text(errors="replace"), []
    for line in before.splitlines():
        try:
            if wanted(json.loads(line)):
                kept.append(f"{line}\n")
        except (ValueError, LookupError, TypeError):
            break
    if before != (after := "".join(kept)):
        with atomic_file(path) as temporary:
            temporary.write_text(after)


def model_hash(module: torch.nn.Module, without: Sequence[str] = (), *, half: bool = False) -> str:
    """A short SHA-256 over a model's class, config and every weight: equal exactly when the models compute the same.

    Args:
        module: any module; of a diffusers `config` attribute those entries count that are not private and not at their
            default, so that an argument which a later version adds does not change the hash.
        without: names of submodules whose weights do not count, and of entries of the config.
        half: of the weights as `rcg.core.half` rounds them; equal for a model and what was stored of it in half the space.
    """
    skipped = tuple(f"{name}." for name in without)
    digest = hashlib.sha256(type(module).__name__.encode())

    def plain(value: Any) -> str:
        return json.dumps(value, sort_keys=True, default=str)  # a tuple reads like a list

    defaults = {name: plain(p.default) for name, p in inspect.signature(type(module)).parameters.items()}
    config = {k: plain(v) for k, v in dict(getattr(module, "config", {})).items() if not k.startswith("_")}
    config = {k: v for k, v in config.items() if defaults.get(k) != v and k not in without}
    digest.update(plain(config).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(skipped):
            continue
        if half and tensor.dtype == torch.float32 and tensor.ndim >= 2:
            tensor = tensor.half().float()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def encoding_hash(module: torch.nn.Module, *, half: bool = False) -> str:
    """`model_hash` of what a model's encodings depend on: all but the submodules that it names in `after_encoding`."""
    return model_hash(module, getattr(module, "after_encoding", ()), half=half)
