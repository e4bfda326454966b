"""Reading numpy's files that anybody may have written or damaged. A leaf: anyone may import it.

`np.load` believes a header: it asks for as much memory as one says, and stumbles over a damaged one in a dozen ways. Here a
file is an array that fits it, or a `UserError`; no pickle is ever read.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from rcg.core.errors import UserError, first_line

MOST_PACKING = 1100
"""Deflate packs no bytes to less than a 1032nd; a member that says more is no honest one."""
_BROKEN = (
    OSError, ValueError, EOFError, LookupError, TypeError, SyntaxError, RecursionError, OverflowError, NotImplementedError,
    RuntimeError, AttributeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy, its reader of headers and zipfile raise for damaged files."""


@contextmanager
def readable(file: Path, again: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into a `UserError` that names it; `again` is the way out."""
    try:
        yield
    except (UserError, PermissionError):
        raise
    except _BROKEN as e:
        raise UserError(f"{file} cannot be read ({first_line(e, 120)}); {again}.") from None


def read_header(data: IO[bytes], length: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of a `.npy`, from its beginning; `data` stands at the numbers afterwards.

    Args:
        data: the file, or what an archive holds.
        length: bytes that it has in all.

    Raises:
        ValueError: it holds objects, or fewer bytes than it says; others of numpy's for a damaged header.
    """
    version = np.lib.format.read_magic(data)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version[0]}.{version[1]} of the format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(data)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > length - data.tell():
        raise ValueError(f"it ends before the {list(shape)} numbers that it announces")
    return shape, fortran, dtype


def load_array(
    file: Path,
    again: str,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
    mode: Literal["r", "r+"] | None = None,
) -> np.ndarray:
    """The array in a `.npy` file.

    Args:
        file: its path.
        again: the way out that an error names.
        shape, dtype: what it must be.
        mode: map it into memory, to read or to write; None reads it.

    Raises:
        UserError: it cannot be read, is damaged, or is another array.
    """
    with readable(file, again):
        with file.open("rb") as data:
            found, fortran, kind = read_header(data, os.fstat(data.fileno()).st_size)
            start = data.tell()
            order: Literal["F", "C"] = "F" if fortran else "C"
            count = math.prod(found)
            if mode is None or count == 0:
                array: np.ndarray = np.fromfile(data, kind, count).reshape(found, order=order)
        if mode is not None and count:
            array = np.memmap(file, kind, mode, start, found, order)
    if (shape is not None and array.shape != shape) or (dtype is not None and array.dtype != dtype):
        wanted = f"{dtype or array.dtype} {list(array.shape if shape is None else shape)}"
        raise UserError(f"{file} holds {array.dtype} {list(array.shape)}, not {wanted}; {again}.")
    return array


def load_arrays(file: Path, again: str) -> dict[str, np.ndarray]:
    """The arrays in a `.npz` file, by name.

    Raises:
        UserError: it cannot be read or is damaged.
    """
    with readable(file, again), zipfile.ZipFile(file) as archive:
        return {
            member.filename.removesuffix(".npy"): load_member(archive, member)
            for member in archive.infolist()
            if member.filename.endswith(".npy")
        }


def load_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array in an open `.npz`; raises what `readable` turns into a `UserError`."""
    if member.file_size > MOST_PACKING * (member.compress_size + 1):
        raise ValueError(f"{member.filename} says that it has {member.file_size} bytes")
    with archive.open(member) as data:
        shape, fortran, dtype = read_header(data, member.file_size)
        numbers = np.frombuffer(bytearray(data.read()), dtype, math.prod(shape))
        return cast(np.ndarray, numbers.reshape(shape, order="F" if fortran else "C"))
