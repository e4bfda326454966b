"""Memory that is mapped from files: weights that have been copied need not stay in it. A leaf: anyone may import it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from pathlib import Path

import torch

_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4 and later


class MappedFiles:
    """Where this process has files in memory, as of now."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
        self._madvise = madvise
        if madvise is None:
            return
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        try:
            lines = Path("/proc/self/maps").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[4] != "0":  # an inode
                start, end = (int(x, 16) for x in fields[0].split("-"))
                self._ranges.append((start, end))

    def let_go(self, tensor: torch.Tensor) -> None:
        """Take the whole pages of a contiguous CPU tensor that lies in such a file out of memory; its values stay.

        They are read again, from the file or what the system still has of it, when they are next looked at. Tensors in other
        memory, and systems without this, are left alone.
        """
        if self._madvise is None or tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.numel():
            return
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        at = bisect_right(self._ranges, (start, sys.maxsize)) - 1
        if at < 0 or not self._ranges[at][0] <= start < end <= self._ranges[at][1]:
            return
        page = mmap.PAGESIZE
        start, end = -(-start // page) * page, end // page * page
        if start < end:
            self._madvise(start, end - start, _PAGEOUT)  # an error changes nothing
