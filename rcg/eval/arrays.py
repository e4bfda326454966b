"""Images in an `.npz`, as guided-diffusion (ADM) writes its samples and reference batches: `arr_0`, and labels `arr_1`."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from rcg.core.arrays import load_member, read_header, readable
from rcg.core.errors import UserError
from rcg.data.sources import ImageSource

IMAGES, LABELS = "arr_0.npy", "arr_1.npy"


def members(path: Path) -> set[str]:
    """The names in a `.npz`, such as `mu.npy`; none if it is no such file."""
    try:
        with zipfile.ZipFile(path) as file:
            return set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return set()


def holds_images(path: Path) -> bool:
    """Whether a `.npz` holds an array `arr_0`."""
    return IMAGES in members(path)


class ArraySource(ImageSource):
    """The images of an `.npz`, read one by one: memory does not grow with their number unless the file is compressed.

    Args:
        path: the file; its `arr_0` is uint8 [N, H, W, 3], its `arr_1`, if there is one, int [N].

    Raises:
        UserError: no such file, or another array.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.skipped = []
        with readable(path, "give a .npz of images, or make it again"), zipfile.ZipFile(path) as file:
            member = file.getinfo(IMAGES)
            held = [f"{m.filename} {m.file_size} {m.CRC}" for m in file.infolist()]  # of all their bytes
            with file.open(member) as data:
                shape, fortran, dtype = read_header(data, member.file_size)
                start = data.tell()
            labels = load_member(file, file.getinfo(LABELS)) if LABELS in file.namelist() else None
            if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran or not all(shape):
                raise UserError(f"{path}: arr_0 is {dtype} {list(shape)}, but images are uint8 [N, height, width, 3].")
            self._kept = None
            if member.compress_type == zipfile.ZIP_STORED:
                self._start = _data_offset(path, member) + start
            else:
                self._kept = load_member(file, member)
        self._shape = shape[1:]
        self.sizes = np.tile(np.array([[shape[2], shape[1]]], np.int32), (shape[0], 1))
        self.labels, self.class_names = None, []
        if labels is not None and labels.shape == (shape[0],) and np.issubdtype(labels.dtype, np.integer):
            self.class_names = [str(i) for i in sorted(set(labels.tolist()))]
            self.labels = np.searchsorted(sorted(set(labels.tolist())), labels).astype(np.int64)
        self.fingerprint = hashlib.sha256(f"{shape} {sorted(held)}".encode()).hexdigest()[:32]

    def image(self, index: int) -> Image.Image:
        """See `ImageSource.image`.

        Raises:
            UserError: the file was cut since it was opened.
        """
        if self._kept is not None:
            return Image.fromarray(self._kept[index])
        length = int(np.prod(self._shape))
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), length, self._start + index * length)
        if len(data) != length:
            raise UserError(f"{self.path} ends before its image {index}; fetch or make it again.")
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(self._shape))


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: behind its local header, whose last two numbers are lengths."""
    with path.open("rb") as file:
        header = os.pread(file.fileno(), 30, member.header_offset)
    return member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
