"""Which files of a folder are sheets of samples, and no samples: told by their size, not by their names alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rcg.data.image_source import is_named_grid

GAPS = range(5)  # pixels between the pictures of a sheet
MOST = 0.25  # sheets among the files, at most, where no name says that they are


def is_sheet(size: tuple[int, int], single: tuple[int, int]) -> bool:
    """Whether a picture of this (width, height) can be several of size `single` in rows and columns, with equal gaps."""
    if size == single:
        return False
    return any(all((whole + gap) % (one + gap) == 0 for whole, one in zip(size, single, strict=True)) for gap in GAPS)


def find_sheets(sizes: np.ndarray, files: Sequence[str], guess: bool = True) -> set[int]:
    """Numbers of the files that are sheets.

    A file of another size than most is one if it is called like one; or if its size is that of several pictures, all
    files that are not such have one size, and such are few. A file as large as the others is none, whatever its name.

    Args:
        sizes: [N, 2], width and height of each.
        files: their names; empty where images come from no files, and there are no sheets then.
        guess: go by the size, too; otherwise only what is called a sheet is one.
    """
    if not len(files):
        return set()
    pairs = [(int(w), int(h)) for w, h in sizes]
    named = {i for i, file in enumerate(files) if is_named_grid(file)}
    if len(named) == len(files):
        return named
    counts = Counter(pair for i, pair in enumerate(pairs) if i not in named)
    single = counts.most_common(1)[0][0]
    odd = {i for i, pair in enumerate(pairs) if pair != single}
    if guess:
        like = {i for i in odd if is_sheet(pairs[i], single)}
        if odd <= like | named and len(like - named) <= MOST * len(files):
            return odd
    return odd & named
