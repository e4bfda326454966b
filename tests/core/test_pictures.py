"""Pictures from tensors: rounding, grids, PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from rcg import UserError
from rcg.core.pictures import from_pil, make_grid, png_text, save_png, spread, to_pil, to_uint8


def test_rounding() -> None:
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert to_uint8(values, "truncate").tolist() == [0, 0, 0, 0, 254, 255, 255]
    for bad in (torch.nan, torch.inf):
        with pytest.raises(UserError, match="NaN or infinite"):
            to_uint8(torch.tensor([0.5, bad]))


def test_every_level_survives_a_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    images = to_pil(levels)
    assert torch.equal(to_uint8(from_pil(images)), levels)
    assert [i.tobytes() for i in to_pil(from_pil(images))] == [i.tobytes() for i in images]
    for wrong in (torch.zeros(3, 4, 4), torch.zeros(1, 1, 4, 4)):
        with pytest.raises(UserError, match="must be"):
            to_pil(wrong)
    with pytest.raises(UserError, match="no images"):
        from_pil([])
    with pytest.raises(UserError, match="differ in size"):
        from_pil([images[0], images[0].resize((4, 4))])


def test_pictures_are_read_as_image_files_are() -> None:
    wide = Image.fromarray(np.full((2, 4), 40000, np.uint16))
    hidden = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    lying = Image.new("RGB", (2, 4), (1, 2, 3))
    lying.putpixel((0, 0), (255, 255, 255))
    lying.getexif()[ExifTags.Base.Orientation] = 6
    images = from_pil([wide, hidden, lying])
    assert images.shape == (3, 3, 2, 4)
    assert torch.equal(images[0], torch.full((3, 2, 4), round(40000 / 257) / 255))
    assert torch.equal(images[1], torch.ones(3, 2, 4))
    assert images[2, 0, 0, 3] == 1
    assert images[2, 0, 0, 0] < 0.1
    with pytest.raises(UserError, match=r"an image has floating-point pixels outside \[0, 1\]; convert"):
        from_pil([Image.fromarray(np.full((2, 4), 9.0, np.float32))])


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, None, (1, 1)), (5, None, (2, 3)), (9, None, (3, 3)),
                                                         (5, 4, (2, 4)), (2, 8, (1, 2))])  # fmt: skip
def test_grid(count: int, columns: int | None, shape: tuple[int, int]) -> None:
    images = [Image.new("RGB", (6, 4), (10 * i, 0, 0)) for i in range(count)]
    grid = np.asarray(make_grid(images, columns, padding=1))
    rows, cols = shape
    assert grid.shape == (rows * 5 - 1, cols * 7 - 1, 3)
    for i in range(count):
        cell = grid[i // cols * 5 : i // cols * 5 + 4, i % cols * 7 : i % cols * 7 + 6]
        assert (cell == (10 * i, 0, 0)).all()
    for bad, message in (([], "at least one"), ([images[0], Image.new("RGB", (1, 1))], "one size")):
        with pytest.raises(UserError, match=message):
            make_grid(bad)
    with pytest.raises(UserError, match="0 columns"):
        make_grid(images, 0)


def test_png_files(tmp_path: Path) -> None:
    image = to_pil(torch.rand(1, 3, 8, 8))[0]
    path = tmp_path / "new" / "a.png"
    save_png(path, image, {"key": "value"})
    assert png_text(path) == {"key": "value"}
    assert Image.open(path).tobytes() == image.tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    content = path.read_bytes()
    for part in (content[:-1], content[:20], b""):
        path.write_bytes(part)
        assert png_text(path) is None
    assert png_text(tmp_path / "absent.png") is None


def test_pictures_to_look_at_are_spread() -> None:
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 8).tolist() == [0, 1, 2]
    assert spread(0, 8).tolist() == []
    labels = np.arange(1000) // 100  # sorted by class, as folders are
    assert np.bincount(labels[spread(1000, 32)]).min() >= 3
