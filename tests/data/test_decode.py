"""Every mode of picture becomes upright RGB."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rcg.data import decode as module
from rcg.data.decode import DecodeError, decode

RAMP = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)


def data_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation: int) -> None:
    upright = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
    stored = {  # what a camera writes so that the orientation's transform gives the upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(data_of(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert np.array_equal(np.asarray(decoded), upright)


def test_grey_and_palette_and_bits() -> None:
    grey = Image.fromarray(RAMP)
    for image in (grey, grey.convert("P"), Image.fromarray(RAMP.astype(np.uint16) * 257)):
        decoded = decode(data_of(image))
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), np.stack([RAMP] * 3, -1))
    assert np.asarray(decode(data_of(Image.fromarray(RAMP > 100)))).max() == 255
    real = decode(data_of(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"))
    assert np.array_equal(np.asarray(real)[..., 1], RAMP)


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 0, 0, 255)
    pixels[0, 1] = (200, 0, 0, 0)
    pixels[1, 0] = (200, 0, 0, 51)
    decoded = np.asarray(decode(data_of(Image.fromarray(pixels))))
    assert decoded[0].tolist() == [[200, 0, 0], [255, 255, 255]]
    assert decoded[1, 0].tolist() == [244, 204, 204]  # 0.2 of the colour on 0.8 of white
    grey = Image.fromarray(RAMP).convert("LA")
    grey.putalpha(0)
    assert np.asarray(decode(data_of(grey))).min() == 255
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert np.asarray(decode(data_of(palette))).max() == 9
    assert np.asarray(decode(data_of(palette, transparency=1))).min() == 255
    coloured = Image.new("RGB", (2, 2), (9, 9, 9))
    assert np.asarray(decode(data_of(coloured, transparency=(9, 9, 9)))).min() == 255


def test_cmyk() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(np.asarray(decode(data_of(red, "TIFF")), int) - [255, 0, 0]).max() == 0
    assert np.abs(np.asarray(decode(data_of(red, "JPEG", quality=95)), int) - [255, 0, 0]).max() <= 3


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    decoded = decode(data_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((3, 3)) == (0, 0, 255)


def test_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = data_of(Image.fromarray(noise), "JPEG")
    with pytest.raises(DecodeError, match="empty"):
        decode(b"")
    with pytest.raises(DecodeError, match="not an image"):
        decode(b"hello")
    for end in (len(whole) // 2, len(whole) - 40):
        with pytest.raises(DecodeError, match="truncated"):
            decode(whole[:end])
    png = data_of(Image.fromarray(noise))
    with pytest.raises(DecodeError):
        decode(png[: len(png) // 2])
    with pytest.raises(DecodeError, match="unknown range"):
        decode(data_of(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"))
    with pytest.raises(DecodeError, match="outside"):
        decode(data_of(Image.fromarray(np.full((4, 4), 2, np.float32)), "TIFF"))
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(DecodeError, match="bomb"):
        decode(whole)
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DecodeError, match="bomb"):
        decode(whole)
