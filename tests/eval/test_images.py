"""Image sets of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.sources import open_source
from rcg.eval.images import ImageSet, is_grid


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images 0…11 of 9×10 px whose pixels are their number, in two sub-folders."""
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))
    for i in range(12):
        path = tmp_path / "images" / ("a" if i < 6 else "b") / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, 9, 3), i, np.uint8)).save(path)
    return tmp_path / "images"


def numbers(images: ImageSet, batch_size: int = 5) -> list[int]:
    return [int(x) for batch in images.batches(batch_size) for x in batch[:, 0, 0, 0]]


def test_order_and_batches(folder: Path) -> None:
    images = ImageSet(open_source(folder, progress=False), "generated")
    batches = list(images.batches(5))
    assert [tuple(b.shape) for b in batches] == [(5, 3, 10, 9), (5, 3, 10, 9), (2, 3, 10, 9)]
    assert {b.dtype for b in batches} == {torch.uint8}
    assert numbers(images) == list(range(12))
    assert (images.size, images.notes) == ("9×10", [])


def test_limit_is_drawn_by_the_seed(folder: Path) -> None:
    source = open_source(folder, progress=False)
    one, again, other = (ImageSet(source, "generated", limit=6, seed=s) for s in (0, 0, 1))
    assert numbers(one) == numbers(again) == sorted(set(numbers(one)))
    assert numbers(one, 1) == numbers(one, 4)
    assert numbers(one) != numbers(other)
    assert min(numbers(one)) < 6 <= max(numbers(one))  # of both sub-folders
    assert "6 of the 12" in one.notes[0]
    assert len(ImageSet(source, "generated", limit=100)) == 12


@pytest.mark.filterwarnings("ignore:.*both in sub-folders and beside them")
def test_grids_are_left_out_and_said_so(folder: Path) -> None:
    for name in ("grid.png", "a/grid_000100.png"):
        Image.new("RGB", (40, 40)).save(folder / name)
    images = ImageSet(open_source(folder, progress=False), "generated")
    assert numbers(images) == list(range(12))
    assert images.notes == ["2 sample grid(s) among the generated images are left out: a/grid_000100.png, grid.png."]
    assert is_grid("x/GRID.PNG")
    assert not is_grid("x/grids.png")
    assert not is_grid("grid/000000.png")


def test_only_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "x").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "x" / "grid.png")
    with pytest.raises(UserError, match="only sample grids"):
        ImageSet(open_source(tmp_path / "x", progress=False), "generated")


@pytest.mark.filterwarnings("ignore:1 of 13 images")
def test_broken_files_are_counted(folder: Path) -> None:
    (folder / "a" / "broken.png").write_bytes(b"no image")
    images = ImageSet(open_source(folder, progress=False), "generated")
    assert len(images) == 12
    assert images.notes == ["1 unusable file(s) among the generated images are left out."]


def test_sizes_must_agree_or_be_made_to(folder: Path) -> None:
    Image.new("RGB", (20, 30), (200, 200, 200)).save(folder / "b" / "z.png")
    source = open_source(folder, progress=False)
    with pytest.raises(UserError, match=r"12 of 9×10, 1 of 20×30.*--image-size"):
        ImageSet(source, "reference")
    images = ImageSet(source, "reference", image_size=8)
    assert [tuple(b.shape) for b in images.batches(20)] == [(13, 3, 8, 8)]
    assert numbers(images) == [*range(12), 200]
    assert images.size == "8×8"
