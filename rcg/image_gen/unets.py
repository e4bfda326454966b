"""What the families share whose network is a U-Net of diffusers: its parts done the quick way, and checks of its sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from rcg.core.attention import quick_attention
from rcg.core.dropout import replace_dropouts
from rcg.core.errors import UserError

BLOCK_VALUES = 2**19
"""About so many values of the finest level are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`: of 32 channels 16 images
of 32 px, which is twice as quick an image as four at a time."""


MOST_ROWS = 16
"""However small they are: a block is always computed whole, also for a single image."""


class QuickAttention(AttnProcessor2_0):
    """diffusers' attention, with `rcg.core.attention` in training.

    On CPUs its result is contiguous, too: otherwise what follows lies channels-last in memory, where norms of groups of few channels
    in bf16 take ten times as long.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """As diffusers calls it."""
        with quick_attention(hidden_states):
            y: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return y.contiguous() if y.device.type == "cpu" else y


def make_quick(unet: nn.Module) -> None:
    """Put `QuickAttention` and `rcg.core.dropout` in the place of diffusers' own; what is computed stays the same."""
    replace_dropouts(unet)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(QuickAttention())


def check_levels(multipliers: Sequence[int], side: int, name: str) -> None:
    """Raise `UserError` for a U-Net's channel multipliers that do not begin with 1, or halve the side unevenly."""
    if not multipliers or multipliers[0] != 1:
        raise UserError(f"channel_multipliers is {tuple(multipliers)}, but it must begin with 1; choose other widths.")
    if side % 2 ** (len(multipliers) - 1):
        raise UserError(
            f"{name} is {side}, which {len(multipliers)} levels do not halve evenly; use fewer channel_multipliers or "
            "another size."
        )


def norm_groups(widths: Sequence[int]) -> int:
    """Groups of the norms of levels so wide: at most the published 32, and of four channels or more.

    A norm takes away the mean of every group: of groups of one channel, what is the same all over an image, which are its colour,
    a condition that is added to it, and the same part of the noise.
    """
    return math.gcd(max(1, min(32, min(widths) // 4)), *widths)


def block_rows(side: int, width: int) -> int:
    """Samples of a block, at most `MOST_ROWS`; `side` and `width` of the finest level."""
    return min(MOST_ROWS, BLOCK_VALUES // (side**2 * width))


def zero(layer: nn.Module) -> None:
    """Let a layer begin without effect."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
