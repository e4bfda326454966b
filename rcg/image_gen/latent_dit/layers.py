"""The block DiT is made of; the rest it shares with MAGE (attention, MLP) and PixelDiT (what modulates a token, the head)."""

from __future__ import annotations

from torch import nn

from rcg.image_gen.mage.layers import Mlp, SelfAttention
from rcg.image_gen.pixel_dit.layers import ModulatedBlock


class Block(ModulatedBlock):
    """See `ModulatedBlock`; all its linear layers have biases.

    Args:
        width: size of the residual stream, divisible by `num_heads`.
        num_heads: attention heads.
        mlp_ratio: hidden size of the MLP as a multiple of the width.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attn = SelfAttention(width, num_heads, dropout=0.0)
        self.mlp = Mlp(width, max(1, int(width * mlp_ratio)), dropout=0.0)
