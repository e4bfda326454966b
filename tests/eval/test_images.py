"""Image sets of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcg.core.errors import UserError
from rcg.data.images import Framing
from rcg.data.sources import open_source
from rcg.eval.images import ImageSet, StreamImages, frame_plainly, open_images


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
    Image.new("RGB", (40, 40)).save(folder / "grid.png")  # by its name: it has a caption
    Image.new("RGB", (3 * 9 + 4, 2 * 10 + 2)).save(folder / "a" / "samples.png")  # by its size: 3 × 2, gaps of 2 px
    images = ImageSet(open_source(folder, progress=False), "generated")
    assert numbers(images) == list(range(12))
    assert images.notes == ["2 sample grid(s) among the generated images are left out: a/samples.png, grid.png."]


def test_what_is_known_of_the_set(folder: Path) -> None:
    source = open_source(folder, progress=False)
    (folder / "c").mkdir()
    images = ImageSet(source, "reference")
    assert images.formats == {"png": 12}
    assert images.classes == {"a": 6, "b": 6, "c": 0}
    assert images.resize == "none"
    some = ImageSet(source, "reference", limit=6)
    assert some.classes is not None
    assert sum(some.classes.values()) == 6


def test_a_part_of_a_set(folder: Path) -> None:
    images = ImageSet(open_source(folder, progress=False), "generated")
    assert [int(x) for batch in images.batches(3, 4, 9) for x in batch[:, 0, 0, 0]] == [4, 5, 6, 7, 8]


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
    assert images.resize == "bicubic, with antialias, centre crop"
    plain = ImageSet(source, "reference", image_size=8, resize="plain")
    assert [tuple(b.shape) for b in plain.batches(20)] == [(13, 3, 8, 8)]
    assert plain.resize == "bicubic, without antialias, centre crop"


def test_resizing_without_antialias_keeps_what_antialias_blurs() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 255
    picture = Image.fromarray(stripes)
    plain, smooth = frame_plainly(picture, 8), Framing(8).base(picture)
    assert plain.shape == smooth.shape == (8, 8, 3)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(stripes).permute(2, 0, 1)[None].float(), (8, 8), mode="bicubic"
    )
    assert (plain == expected[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()).all()
    assert np.abs(plain.astype(int) - smooth).mean() > 20
    assert frame_plainly(Image.new("RGB", (20, 9), (7, 7, 7)), 9).shape == (9, 9, 3)


def test_streams() -> None:
    batches = [torch.full((n, 3, 4, 4), n, dtype=torch.uint8) for n in (3, 1, 5)]
    stream = StreamImages(batches, count=9)
    assert stream.count() == 9
    assert [len(b) for b in stream.batches(2)] == [3, 1, 5]
    assert [len(b) for b in stream.batches(2, 2, 6)] == [1, 1, 2]
    assert StreamImages(iter(batches)).count() is None
    for more in (8, 4):  # the count ends within a batch, or with one
        with pytest.raises(UserError, match=f"has more than the {more} images"):
            list(StreamImages(iter(batches), count=more).batches(2, 0, more))


def test_an_npz_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(
        tmp_path / "a.npz",
        arr_0=np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(6, 2).repeat(3, 3),
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    images = ImageSet(open_images("~/a.npz"), "generated")
    assert (images.size, images.formats, images.classes) == ("6×4", {}, None)
    assert numbers(images) == [0, 1, 2, 3, 4]


def test_large_real_images_are_no_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCG_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "real").mkdir()
    for i in range(10):
        side = 16 if i == 9 else 8
        Image.new("RGB", (side, side)).save(tmp_path / "real" / f"{i}.png")
    source = open_source(tmp_path / "real", min_size=1)
    assert [len(ImageSet(source, what, image_size=8)) for what in ("reference", "training", "held-out")] == [10] * 3
    assert len(ImageSet(source, "generated", image_size=8)) == 9
