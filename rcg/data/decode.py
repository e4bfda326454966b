"""From the bytes of an image file to an upright RGB picture, whatever mode the file is in."""

from __future__ import annotations

import io
import re

from PIL import Image, UnidentifiedImageError

from rcg.core.pictures import to_rgb, upright

MAX_PIXELS = 178_956_970
"""Larger pictures are taken for decompression bombs (Pillow's own limit, which a program may have switched off)."""
DECODE_VERSION = 2
"""Raise it when `decode` accepts or refuses other files than before, or more is found out, so that they are checked again."""

NEARLY_BLACK = 20
"""Of 255: nothing in an image is brighter, and nobody meant it so."""
QUARTER = 64
"""The same of files of 16 bits, which are scaled by all that these can hold: the most that 14 bits in one become."""
DEEP = re.compile(";16[BLN]")
"""How Pillow calls 16 bits a channel."""
BRIGHTEN = (
    "if they are 16-bit files with values of 14, 12 or 10 bits, multiply these by 4, 16 or 64 and save them again"
)


class DecodeError(ValueError):
    """The bytes are no picture that can be used; the message is the reason, a few words."""


def is_dark(image: Image.Image, deep: bool) -> bool:
    """Whether a decoded picture is nearly black; `deep`, of a file of 16 bits: uses no more than a quarter of its range."""
    return max(high for _, high in image.getextrema()) <= (QUARTER if deep else NEARLY_BLACK)  # type: ignore[misc]


def decode(data: bytes) -> Image.Image:
    """Decode an image file completely: the picture of `decode_deep`, which see."""
    return decode_deep(data)[0]


def decode_deep(data: bytes) -> tuple[Image.Image, bool]:
    """Decode an image file completely.

    The first frame of an animation is taken; an EXIF orientation is applied; transparency is laid on white; 16-bit
    greys are scaled to 8 bits; CMYK, palettes, greyscale and the like become RGB. ICC profiles are not applied.

    Args:
        data: the file's bytes.

    Returns:
        An RGB image, upright, and whether the file has 16 bits a channel.

    Raises:
        DecodeError: the bytes are broken, truncated, no image, too large, or have pixels of unknown range.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DecodeError(f"{image.width}×{image.height} px, too large (a decompression bomb?)")
            deep = image.mode.startswith("I") or any(DEEP.search(str(tile)) for tile in getattr(image, "tile", ()))
            image.load()
            return to_rgb(upright(image)), deep
    except (DecodeError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise DecodeError("too large (a decompression bomb?)") from None
    except UnidentifiedImageError:
        raise DecodeError("not an image") from None
    except Exception as e:  # decoders raise whatever their file formats make them stumble over
        reason = str(e).strip() or type(e).__name__
        raise DecodeError(reason.splitlines()[0][:120]) from None
