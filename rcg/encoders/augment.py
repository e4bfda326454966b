"""Random views of images (MoCo-v3's two, StableRep's, those for language), for a whole batch at once on any device.

The recipe of MoCo-v3 is that of MoCo-v3 (arXiv 2104.02057, appendix; the asymmetric one of BYOL): random resized crop, colour
jitter, grey, blur, solarisation, flip. It was made for 224 px. For small images two things change (`moco_v3_recipes`):
blur is measured in pixels, so its sigma shrinks with the image; and a crop of 8 % of a 32 px image has 9 px and says
nothing about the image, so crops cover at least 20 % there, as is usual on CIFAR.

All random numbers come from `rcg.core.draws` (in training those of each sample, else of the global torch CPU generator), in
a fixed order, so that one seed gives the same views on every device; pixel work happens where the images are. What was drawn
follows there without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg.core import draws

LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class ViewRecipe:
    """How strongly one view is changed. Probabilities in [0, 1], sigma in pixels."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height."""
    jitter: float = 0.8
    """Probability of colour jitter: the four below, in an order drawn for each image."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    """Probability of turning grey."""
    blur: float = 1.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    """Probability of solarisation: values ≥ 0.5 become 1 − value."""
    flip: float = 0.5
    """Probability of a horizontal flip."""


@dataclass(frozen=True)
class StableRepView(ViewRecipe):
    """StableRep's view of an image: SimCLR's, and now and then an image of low resolution (`downsample`)."""

    saturation: float = 0.4
    blur: float = 0.5
    downsample: float = 0.05
    """Probability of shrinking the whole image to a quarter or a half of its side and enlarging it again: 64 or 128 px of
    256 in the paper."""


@dataclass(frozen=True)
class SynCLRView(StableRepView):
    """SynCLR's view of an image: StableRep's shrinking with BYOL's colours (arXiv 2312.17742, table 12), of which each image gets
    one of the two recipes, by lot (as in the reference program); and a size of its own."""

    saturation: float = 0.2
    blur: float = 1.0
    other_blur: float = 0.1
    """`blur` by the second recipe."""
    other_solarize: float = 0.2
    """`solarize` by the second recipe."""
    side: int | None = None
    """Of the view in pixels; None: as large as the image."""


def default_crop_scale(size: int) -> float:
    """Least share of the area of a crop: the paper's 0.08 from 128 px on, 0.2 up to 64 px, between them in between."""
    share = min(max((math.log2(size) - 6.0), 0.0), 1.0)
    return 0.2 + share * (0.08 - 0.2)


def moco_v3_recipes(size: int, min_crop_scale: float | None = None) -> tuple[ViewRecipe, ViewRecipe]:
    """The asymmetric pair of recipes for images of `size` pixels.

    Args:
        size: side of the images; blur's sigma is 0.1–2 px at 224 and proportional to the side.
        min_crop_scale: least share of the area of a crop; None: `default_crop_scale(size)`.
    """
    scale = (default_crop_scale(size) if min_crop_scale is None else min_crop_scale, 1.0)
    sigma = (0.1 * size / 224, 2.0 * size / 224)
    return (
        ViewRecipe(crop_scale=scale, blur=1.0, blur_sigma=sigma, solarize=0.0),
        ViewRecipe(crop_scale=scale, blur=0.1, blur_sigma=sigma, solarize=0.2),
    )


def stablerep_view(size: int, min_crop_scale: float | None = None, downsample: float = 0.05) -> StableRepView:
    """StableRep's recipe for images of `size` pixels; blur and least crop as in `moco_v3_recipes`.

    Args:
        size, min_crop_scale: see `moco_v3_recipes`.
        downsample: see `StableRepView`.
    """
    one, _ = moco_v3_recipes(size, min_crop_scale)
    return StableRepView(crop_scale=one.crop_scale, blur_sigma=one.blur_sigma, downsample=downsample)


def synclr_views(
    size: int, side: int, global_crop_scale: float = 0.32, min_crop_scale: float | None = None, downsample: float = 0.05
) -> tuple[SynCLRView, SynCLRView]:
    """SynCLR's recipes of large and of small views.

    Args:
        size: of the images; blur as in `moco_v3_recipes`.
        side: of the small views, in pixels. Blur is the same number of pixels there, as in the reference program.
        global_crop_scale: least share of the area of a large view, and the largest of a small one (the program's 0.32).
        min_crop_scale: least share of a small one; None: `default_crop_scale(size)`, from 128 px on the program's 0.08.
        downsample: see `StableRepView`.
    """
    sigma = moco_v3_recipes(size)[0].blur_sigma
    large = SynCLRView(crop_scale=(global_crop_scale, 1.0), blur_sigma=sigma, downsample=downsample)
    least = min(default_crop_scale(size) if min_crop_scale is None else min_crop_scale, global_crop_scale)
    small = SynCLRView(crop_scale=(least, global_crop_scale), blur_sigma=sigma, downsample=downsample, blur=0.5,
                       other_blur=0.5, other_solarize=0.0, side=side)  # fmt: skip
    return large, small


def clip_view(size: int, min_crop_scale: float | None = None) -> ViewRecipe:
    """For training with language: crops of at least half of the area, and flips, nothing that a caption might speak of."""
    return ViewRecipe(
        crop_scale=(0.5 if min_crop_scale is None else min_crop_scale, 1.0), jitter=0.0, grey=0.0, blur=0.0
    )


def draw_crops(
    count: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], attempts: int = 10
) -> Tensor:
    """Boxes of random resized crops, with torchvision's distribution.

    Returns:
        float [count, 4]: top, left, height, width in whole pixels. Where none of the attempts fits in the image, the
        largest centred box within the range of ratios.
    """
    u = draws.uniform((count, 4, attempts)).unbind(dim=1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[1])
    w, h = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.float().argmax(dim=1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    u_top, u_left = u[2].gather(1, first)[:, 0], u[3].gather(1, first)[:, 0]
    none = ~fits.any(dim=1)
    whole = min(max(width / height, ratio[0]), ratio[1])
    w[none], h[none] = float(min(width, round(height * whole))), float(min(height, round(width / whole)))
    top, left = torch.floor(u_top * (height - h + 1)), torch.floor(u_left * (width - w + 1))
    top[none], left[none] = torch.floor((height - h[none]) / 2), torch.floor((width - w[none]) / 2)
    return torch.stack([top, left, h, w], dim=1)


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, side: int | None = None) -> Tensor:
    """Cut each image's box out and resize it, bilinear; mirror where `flip`.

    Equal to cropping and then resizing: what lies outside the box does not leak in.

    Args:
        images: float [B, C, H, W].
        boxes: [B, 4] of `draw_crops`, on the CPU.
        flip: bool [B], on the CPU.
        side: of what comes out, in pixels; None: as large as the images. Boxes that are larger are not smoothed first.

    Returns:
        [B, C, H, W], or [B, C, side, side].
    """
    height, width = images.shape[2:]
    rows, columns = (side, side) if side else (height, width)
    top, left, h, w = boxes.float().t().unsqueeze(2)

    def axis(size: int, count: int, start: Tensor, length: Tensor) -> Tensor:  # where output pixels lie, in [-1, 1]
        at = (torch.arange(count) + 0.5) * (length / count)
        at = start + torch.minimum(at.clamp_min(0.5), length - 0.5)
        return at * (2 / size) - 1

    x, y = axis(width, columns, left, w), axis(height, rows, top, h)
    x = torch.where(flip[:, None], x.flip(1), x)
    x, y = (at.to(images.device, images.dtype, non_blocking=True) for at in (x, y))
    grid = torch.stack([x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def to_grey(images: Tensor) -> Tensor:
    """Luma, [B, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images · factor, clipped to [0, 1]; factor [B]."""
    return (images * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey, clipped to [0, 1]; factor [B], 0 is flat, 1 unchanged."""
    f = factor[:, None, None, None]
    return (images * f).add_(to_grey(images).mean(dim=(2, 3), keepdim=True) * (1 - f)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image, clipped to [0, 1]; factor [B], 0 is grey, 1 unchanged."""
    f = factor[:, None, None, None]
    return (images * f).add_(to_grey(images) * (1 - f)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` [B] of the whole circle."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    inverse = chroma.clamp_min(1e-12).reciprocal_()
    hue = torch.where(value == green, (blue - red).mul_(inverse).add_(2), (red - green).mul_(inverse).add_(4))
    hue = torch.where(value == red, (green - blue).mul_(inverse), hue).add_(6 * shift[:, None, None])
    out = torch.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        k = hue + offset
        k.sub_((k * (1 / 6)).floor_().mul_(6))  # modulo 6
        k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, k, value=-1, out=out[:, channel])
    return out


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a sigma [B] (pixels) of its own for each image and 2·radius + 1 taps, borders reflected."""
    taps = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype)[:, :, None, None, None]
    height, width = images.shape[2:]
    padded = F.pad(images, (0, 0, radius, radius), mode="reflect")
    x = padded[:, :, :height] * kernel[:, 0]
    for i in range(1, 2 * radius + 1):
        x.addcmul_(padded[:, :, i : i + height], kernel[:, i])
    padded = F.pad(x, (radius, radius, 0, 0), mode="reflect")
    x = padded[..., :width] * kernel[:, 0]
    for i in range(1, 2 * radius + 1):
        x.addcmul_(padded[..., i : i + width], kernel[:, i])
    return x


def solarize(images: Tensor, threshold: float = 0.5) -> Tensor:
    """1 − value wherever value ≥ threshold."""
    return torch.where(images >= threshold, 1 - images, images)


JITTERS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _rows(mask: Tensor, device: torch.device) -> Tensor:
    return mask.nonzero()[:, 0].to(device, non_blocking=True)


def lower_resolution(images: Tensor, shares: tuple[int, ...], which: Tensor) -> Tensor:
    """Shrink images to 1/share of their side, smoothly, and enlarge them again, bilinear.

    Args:
        images: [B, 3, H, W].
        shares: what sides are divided by.
        which: int64 [B] on the CPU, an index into `shares` for each image, or −1 to leave it.
    """
    size, x = images.shape[2:], images
    for number, share in enumerate(shares):
        if (which == number).any():
            rows = _rows(which == number, images.device)
            x = x.clone() if x is images else x
            small = F.interpolate(images[rows], [max(1, n // share) for n in size], mode="bilinear", antialias=True)
            x[rows] = F.interpolate(small, size, mode="bilinear").clamp_(0, 1)
    return x


def _pixel_work(images: Tensor, drawn: dict[str, Tensor], recipe: ViewRecipe) -> Tensor:
    device = images.device
    if "resolution" in drawn:
        images = lower_resolution(images, (4, 2), drawn["resolution"])
    x = crop_resize(images, drawn["boxes"], drawn["flip"], recipe.side if isinstance(recipe, SynCLRView) else None)
    for turn in range(4):
        for op, adjust in enumerate(JITTERS):
            mask = drawn["jitter"] & (drawn["order"][:, turn] == op)
            if mask.any():
                rows = _rows(mask, device)
                x[rows] = adjust(x[rows], drawn["amounts"][mask, op].to(device, x.dtype, non_blocking=True))
    if drawn["grey"].any():
        rows = _rows(drawn["grey"], device)
        x[rows] = to_grey(x[rows]).expand(-1, 3, -1, -1)
    if drawn["blur"].any():
        radius = min(max(1, math.ceil(3 * recipe.blur_sigma[1])), min(x.shape[2:]) - 1)
        sigma = drawn["sigma"].to(device, non_blocking=True)
        if drawn["blur"].all():
            x = gaussian_blur(x, sigma, radius)
        else:
            rows = _rows(drawn["blur"], device)
            x[rows] = gaussian_blur(x[rows], sigma[rows], radius)
    if drawn["solarize"].any():
        rows = _rows(drawn["solarize"], device)
        x[rows] = solarize(x[rows])
    return x


def augment(images: Tensor, recipe: ViewRecipe, chunk: int = 64) -> Tensor:
    """One random view of each image.

    Args:
        images: float [B, 3, H, W] in [0, 1], already at the view's size.
        recipe: what to do.
        chunk: images worked on together on a CPU, so that they stay in its cache; the views do not depend on it.

    Returns:
        [B, 3, H, W] in [0, 1]; of a recipe with a `side` [B, 3, side, side].
    """
    count, _, height, width = images.shape
    boxes = draw_crops(count, height, width, recipe.crop_scale, recipe.crop_ratio)
    u = draws.uniform((count, 10))
    spans = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue])
    low, high = recipe.blur_sigma
    drawn = {
        "boxes": boxes,
        "flip": u[:, 0] < recipe.flip,
        "jitter": u[:, 1] < recipe.jitter,
        "grey": u[:, 2] < recipe.grey,
        "blur": u[:, 3] < recipe.blur,
        "solarize": u[:, 4] < recipe.solarize,
        "sigma": low + (high - low) * u[:, 5],
        "amounts": (2 * u[:, 6:10] - 1) * spans + torch.tensor([1.0, 1.0, 1.0, 0.0]),  # factors, and the hue's shift
        "order": draws.uniform((count, 4)).argsort(dim=1),
    }
    if isinstance(recipe, SynCLRView):
        second = draws.uniform((count,)) < 0.5
        drawn["blur"] = u[:, 3] < torch.where(second, recipe.other_blur, recipe.blur)
        drawn["solarize"] = u[:, 4] < torch.where(second, recipe.other_solarize, recipe.solarize)
    if isinstance(recipe, StableRepView) and recipe.downsample > 0:
        chance = draws.uniform((count, 2))
        drawn["resolution"] = torch.where(chance[:, 0] < recipe.downsample, (chance[:, 1] * 2).long(), -1)
    step = chunk if images.device.type == "cpu" else count
    parts = [
        _pixel_work(images[i : i + step], {k: v[i : i + step] for k, v in drawn.items()}, recipe)
        for i in range(0, count, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def augmented(images: Tensor, recipes: Sequence[ViewRecipe]) -> dict[str, Tensor]:
    """A random view of each image by each recipe.

    Args:
        images: uint8 [B, 3, H, W], already at the views' size.
        recipes: of the views.

    Returns:
        `view1`, `view2`, …, float [B, 3, H, W] in [0, 1].
    """
    plain = images.float() / 255
    return {f"view{i}": augment(plain, recipe) for i, recipe in enumerate(recipes, start=1)}
