"""Draws from categorical distributions. A leaf: anyone may import it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Categories whose probabilities are summed as one, so that the search is in two short steps and nothing is summed one by one."""
AT_ONCE = 2**17
"""Probabilities of a piece on a CPU: such as its cache holds (`benchmarks/draw_categories.py` says what that gains)."""


def draw_categories(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One category for each distribution, by the inverse of its distribution function, categories in ascending order.

    Computed in float64 where the device has it: a draw near a boundary then does not depend on a kernel's rounding.

    Args:
        logits: float [..., K], finite.
        uniform: float [...] in [0, 1), on any device.

    Returns:
        the categories, int64 [...], and the logarithms of their probabilities, float64 (float32 on MPS) [...].
    """
    rows, thresholds = logits.reshape(-1, logits.shape[-1]), uniform.reshape(-1, 1)
    count = max(1, AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(rows))
    drawn = [_draw(some, u) for some, u in zip(rows.split(count), thresholds.split(count), strict=True)]
    categories, log_p = (torch.cat(parts).reshape(uniform.shape) for parts in zip(*drawn, strict=True))
    return categories, log_p


def _draw(rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """[R, K], [R, 1] → both [R, 1]."""
    number, categories = rows.shape
    double = torch.float32 if rows.device.type == "mps" else torch.float64
    blocks = -(-categories // BLOCK)
    top = rows.amax(dim=1, keepdim=True).to(double)
    p = torch.empty(number, blocks * BLOCK, dtype=double, device=rows.device)
    p[:, :categories] = rows
    p[:, categories:] = -torch.inf
    p = p.sub_(top).exp_().view(number, blocks, BLOCK)
    sums = p.sum(dim=2)
    ends = sums.cumsum(dim=1)
    total = ends[:, -1:]
    threshold = uniform.to(p) * total
    block = torch.searchsorted(ends, threshold, right=True).clamp_max_(blocks - 1)
    within = p.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].cumsum(dim=1)
    rest = threshold - F.pad(ends, (1, 0)).gather(1, block)
    most = within[:, -1:] * (1 - torch.finfo(double).eps)  # rounding must not lead beyond the last that can be
    place = torch.searchsorted(within, rest.minimum(most), right=True)
    category = (block * BLOCK + place).clamp_max_(categories - 1)  # of NaN, which callers refuse
    return category, rows.gather(1, category).to(double) - top - total.log()
