"""From the bytes of an image file to an upright RGB picture, whatever mode the file is in."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Larger pictures are taken for decompression bombs (Pillow's own limit, which a program may have switched off)."""
DECODE_VERSION = 1
"""Raise it when `decode` accepts or refuses other files than before, so that they are checked again."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """The bytes are no picture that can be used; the message is the reason, a few words."""


def decode(data: bytes) -> Image.Image:
    """Decode an image file completely.

    The first frame of an animation is taken; an EXIF orientation is applied; transparency is laid on white; 16-bit
    greys are scaled to 8 bits; CMYK, palettes, greyscale and the like become RGB. ICC profiles are not applied.

    Args:
        data: the file's bytes.

    Returns:
        An RGB image, upright.

    Raises:
        DecodeError: the bytes are broken, truncated, no image, too large, or have pixels of unknown range.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(f"{image.width}×{image.height} px, too large (a decompression bomb?)")
            image.load()
            return to_rgb(_upright(image))
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise DecodeError("too large (a decompression bomb?)") from None
    except UnidentifiedImageError:
        raise DecodeError("not an image") from None
    except Exception as e:  # decoders raise whatever their file formats make them stumble over
        reason = str(e).strip() or type(e).__name__
        raise DecodeError(reason.splitlines()[0][:120]) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # an unreadable EXIF block gives no orientation; the pixels were decoded well
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB (see `decode`).

    Raises:
        DecodeError: the pixels are 32-bit numbers of unknown range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise DecodeError("32-bit integer pixels of unknown range")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        real = np.asarray(image)
        if not (np.isfinite(real).all() and real.min() >= 0 and real.max() <= 1):
            raise DecodeError("floating-point pixels outside [0, 1]")
        return Image.fromarray(np.rint(real * 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "PA"):
        image = image.convert("LA") if image.mode == "La" else image.convert("RGBA")
    if image.mode in ("RGBA", "RGBa", "LA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
