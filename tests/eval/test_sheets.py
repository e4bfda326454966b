"""Sheets of samples are told from samples."""

from __future__ import annotations

import numpy as np

from rcg.data.image_source import is_named_grid
from rcg.eval.sheets import find_sheets, is_sheet


def sheets(*files: tuple[str, int, int]) -> set[str]:
    names = [name for name, _, _ in files]
    return {names[i] for i in find_sheets(np.array([(w, h) for _, w, h in files]), names)}


SINGLES = [(f"{i:06d}.png", 32, 24) for i in range(12)]


def test_by_size() -> None:
    for gap in (0, 1, 2):
        assert is_sheet((4 * 32 + 3 * gap, 2 * 24 + gap), (32, 24))
    assert is_sheet((32, 48), (32, 24))
    assert not is_sheet((32, 24), (32, 24))
    assert not is_sheet((50, 24), (32, 24))


def test_whatever_they_are_called() -> None:
    assert sheets(*SINGLES, ("overview.png", 134, 50)) == {"overview.png"}
    assert sheets(*SINGLES, ("grid.png", 200, 100)) == {"grid.png"}  # with margins, but it says what it is
    assert sheets(*SINGLES, ("grid.png", 32, 24)) == set()  # a picture as large as the others is none


def test_a_mixed_folder_has_none_but_by_name() -> None:
    photos = [("a.jpg", 64, 48), ("b.jpg", 32, 24), ("c.jpg", 50, 40), ("d.jpg", 32, 24)]
    assert sheets(*photos) == set()
    assert sheets(*photos, ("grid_1.png", 70, 70)) == {"grid_1.png"}
    assert sheets(*SINGLES[:3], ("x.png", 64, 48), ("y.png", 64, 48)) == set()  # too many to be sheets


def test_names() -> None:
    assert is_named_grid("x/GRID.PNG")
    assert not is_named_grid("x/grids.png")
    assert not is_named_grid("grid/000000.png")
    assert find_sheets(np.array([[40, 40]]), ["grid.png"]) == {0}
    assert find_sheets(np.array([[8, 8], [16, 16]]), []) == set()


def test_real_pictures_of_other_sizes_are_none() -> None:
    sizes, names = np.array([(8, 8)] * 9 + [(16, 16), (20, 20)]), [f"{i}.png" for i in range(10)] + ["grid.png"]
    assert find_sheets(sizes, names) == {9, 10}
    assert find_sheets(sizes, names, guess=False) == {10}
