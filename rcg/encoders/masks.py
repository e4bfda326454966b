"""Which patches of which images are hidden in masked image modelling; a sample's own seed decides (`rcg.core.draws`)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rcg.core import draws

MaskShape = Literal["random", "block"]
ASPECT = 0.3
"""Least ratio of a block's sides, as in BEiT (arXiv 2106.08254, algorithm 1), which iBOT follows."""
ATTEMPTS = 16
"""Blocks that are tried for an image."""


def chosen_images(samples: int, images: int, probability: float) -> Tensor:
    """Which images are masked at all, bool [samples, images].

    The same number of every sample's, where probability · images is whole; otherwise one more by chance, so that the share is
    met on average.
    """
    count = torch.floor(images * probability + draws.uniform((samples,)).double())
    rank = draws.uniform((samples, images)).argsort(1).argsort(1)
    return rank < count[:, None]


def random_masks(count: int, patches: int, hidden: int) -> Tensor:
    """Masks of any `hidden` of the patches, bool [count, patches]."""
    order = draws.uniform((count, patches)).argsort(1)
    return torch.zeros(count, patches, dtype=torch.bool).scatter(1, order[:, :hidden], True)


def block_masks(count: int, side: int, hidden: int) -> Tensor:
    """Masks of blocks of patches, as BEiT's and iBOT's (arXiv 2111.07832, section 4.1), with exactly `hidden` in each.

    Rectangles whose area lies between (side // 3)² and what is still missing, of ratios from 0.3 to 1 / 0.3, are put down as
    long as none hides too much. What is missing in the end (iBOT leaves it at that) grows at the borders of the blocks.

    Args:
        count: masks.
        side: patches along a side.
        hidden: in each, below side².

    Returns:
        bool [count, side²].
    """
    u = draws.uniform((count, ATTEMPTS, 4)).double()
    priority = draws.uniform((count, side * side))
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    line = torch.arange(side)
    least = (side // 3) ** 2
    for attempt in range(ATTEMPTS):
        missing = hidden - mask.flatten(1).sum(1)
        area = least + (missing - least).clamp_min(0) * u[:, attempt, 0]
        ratio = torch.exp(math.log(ASPECT) * (1 - 2 * u[:, attempt, 1]))
        height, width = ((area * r).sqrt().round().clamp_min(1) for r in (ratio, 1 / ratio))
        top, left = ((t * (side - s + 1)).floor() for t, s in ((u[:, attempt, 2], height), (u[:, attempt, 3], width)))
        rows, columns = ((line >= a[:, None]) & (line < (a + n)[:, None]) for a, n in ((top, height), (left, width)))
        block = rows[:, :, None] & columns[:, None, :] & ~mask
        new = block.flatten(1).sum(1)
        taken = (height < side) & (width < side) & (new <= missing)
        mask |= block & taken[:, None, None]
    return _grown(mask, hidden, priority)


def _grown(mask: Tensor, hidden: int, priority: Tensor) -> Tensor:
    """Masks [B, side, side] with neighbours of what they hide added, in the order of `priority` [B, side²], up to `hidden`."""
    flat = mask.flatten(1).clone()
    empty = ~flat.any(1)
    flat[empty, priority[empty].argmax(1)] = True
    while bool((missing := hidden - flat.sum(1)).any()):
        at = flat.view_as(mask)
        near = torch.zeros_like(at)
        near[:, 1:] |= at[:, :-1]
        near[:, :-1] |= at[:, 1:]
        near[:, :, 1:] |= at[:, :, :-1]
        near[:, :, :-1] |= at[:, :, 1:]
        free = near.flatten(1) & ~flat
        rank = torch.where(free, priority, -1.0).argsort(dim=1, descending=True, stable=True).argsort(1)
        flat |= free & (rank < missing[:, None])
    return flat
