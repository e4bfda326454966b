"""The block DiT is made of; the rest it shares with MAGE (attention, MLP) and PixelDiT (what modulates a token, the head)."""

from __future__ import annotations

from torch import Tensor, nn

from rcg.image_gen.mage.layers import Mlp, SelfAttention
from rcg.image_gen.pixel_dit.layers import add_scaled, modulated_norm


class Block(nn.Module):
    """Transformer block with adaLN-zero (DiT, arXiv 2212.09748, §3.2), whose linear layers have biases.

    x + g₁·attention(LN x · (1+s₁) + b₁), then the same with the MLP. Shifts b, scales s and gates g are linear in the
    condition and start at 0: a new block changes nothing.

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

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, L, width], condition [B, width] → [B, L, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = add_scaled(x, gate1, self.attn(modulated_norm(x, shift1, scale1)))
        return add_scaled(x, gate2, self.mlp(modulated_norm(x, shift2, scale2)))
