"""Pictures from tensors and tensors from pictures: 8-bit conversion, grids, PNG files. A leaf: anyone may import it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from rcg.core.errors import UserError
from rcg.core.files import temporary_path

Rounding = Literal["round", "truncate"]
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_uint8(images: torch.Tensor, rounding: Rounding = "round") -> torch.Tensor:
    """Turn images in [0, 1] into bytes; values outside are clipped first.

    Args:
        images: float [..., H, W].
        rounding: `round` to the nearest level; `truncate` is what the reference program does (half a level darker).

    Returns:
        uint8 tensor of the same shape.

    Raises:
        UserError: when an image holds NaN or infinity, which have no colour.
    """
    if not torch.isfinite(images).all():
        raise UserError("an image holds NaN or infinite values; the model's weights or its precision are at fault.")
    levels = images.detach().float().clamp(0, 1) * 255
    return (levels.round() if rounding == "round" else levels.floor()).to(torch.uint8)


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape → float32 in [−1, 1], as models of pixels take them."""
    return images.float() / 127.5 - 1


def from_signed(images: torch.Tensor) -> torch.Tensor:
    """float [..., H, W] in [−1, 1] → uint8; values outside are clipped. Errors as of `to_uint8`."""
    return to_uint8((images + 1) / 2)


def to_pil(images: torch.Tensor, rounding: Rounding = "round") -> list[Image.Image]:
    """PIL images (RGB) from float [B, 3, H, W] in [0, 1] or from uint8 [B, 3, H, W]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images must be [B, 3, H, W], not {list(images.shape)}.")
    bytes_ = images if images.dtype == torch.uint8 else to_uint8(images, rounding)
    return [Image.fromarray(array) for array in bytes_.permute(0, 2, 3, 1).cpu().contiguous().numpy()]


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; as it is where there is none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # an unreadable EXIF block gives no orientation; the pixels were decoded well
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB: transparency is laid on white, 16-bit greys are scaled to 8 bits, real ones taken from [0, 1].

    Raises:
        ValueError: the pixels are numbers of unknown range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise ValueError("32-bit integer pixels of unknown range")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        real = np.asarray(image)
        if not (np.isfinite(real).all() and real.min() >= 0 and real.max() <= 1):
            raise ValueError("floating-point pixels outside [0, 1]")
        return Image.fromarray(np.rint(real * 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("La", "PA"):
        image = image.convert("LA") if image.mode == "La" else image.convert("RGBA")
    if image.mode in ("RGBA", "RGBa", "LA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def from_pil(images: Sequence[Image.Image]) -> torch.Tensor:
    """float32 [B, 3, H, W] in [0, 1] from pictures of one size: `upright`, `to_rgb`, as image files are read for training.

    Raises:
        UserError: no pictures, pictures of different sizes, or pixels of unknown range.
    """
    if not images:
        raise UserError("there are no images; give at least one.")
    try:
        images = [to_rgb(upright(image)) for image in images]
    except ValueError as e:
        raise UserError(f"an image has {e}; convert it to RGB first.") from None
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise UserError(f"the images differ in size ({sorted(sizes)}); resize them to one size first.")
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(255)


def spread(size: int, count: int) -> np.ndarray:
    """Which `count` (or all) of `size` pictures to look at, int64, rising, evenly apart: where classes lie in turn, some of each."""
    count = min(size, count)
    return np.arange(count) * size // max(count, 1)


def make_grid(images: Sequence[Image.Image], columns: int | None = None, padding: int = 2) -> Image.Image:
    """Paste pictures, row by row, into one.

    Args:
        images: pictures of one size.
        columns: pictures in a row; by default the smallest square-ish grid, ⌈√n⌉.
        padding: white pixels between neighbours (none around the outside).
    """
    if not images:
        raise UserError("a grid needs at least one image.")
    if columns is not None and columns < 1:
        raise UserError(f"a grid cannot have {columns} columns; give 1 or more.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    if any(image.size != (width, height) for image in images):
        raise UserError("the images of a grid must all have one size.")
    size = (columns * (width + padding) - padding, rows * (height + padding) - padding)
    grid = Image.new("RGB", size, (255, 255, 255))
    for i, image in enumerate(images):
        grid.paste(image.convert("RGB"), (i % columns * (width + padding), i // columns * (height + padding)))
    return grid


def _png_info(text: Mapping[str, str] | None) -> PngInfo:
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    return info


def png_bytes(image: Image.Image, text: Mapping[str, str] | None = None) -> bytes:
    """The bytes that `save_png` writes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=_png_info(text))
    return buffer.getvalue()


def save_png(path: Path, image: Image.Image, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG with `text` as its metadata (tEXt chunks): under another name first, so that no half image is seen.

    It is not forced onto the disk (that would take longer than making a small image); `png_text` recognises a file
    that a power failure cut off.
    """
    info = _png_info(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        image.save(temporary, format="PNG", pnginfo=info)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def png_text(path: Path) -> dict[str, str] | None:
    """The metadata of a PNG file, or None when there is no such file or it is not a whole PNG."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), 2)
            if file.read() != PNG_END:
                return None
        with Image.open(path) as image:
            return {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except OSError:
        return None
