"""The networks of the tokenizer: convolutional encoder and decoder of the MaskGIT VQGAN.

They follow the released network to the letter (REFERENCE: MaskGIT, arXiv 2202.04200, and the PyTorch port in MAGE): residual
convolutions without bias, a 1x1 shortcut that acts on the *branch*, average pooling going down, nearest-neighbour
upsampling and a convolution going up, GroupNorm (eps 1e-6), SiLU, and no attention. Parameter names are those of the
released files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; [B,in,H,W] -> [B,out,H,W].

    With equal widths out = x + h. Where the width changes the released network computes out = shortcut(h) + h from the
    branch h alone, and does not use x.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Upsample(nn.Module):
    """Nearest neighbour x2, then a 3x3 convolution: [B,C,H,W] -> [B,C,2H,2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution; on the way up followed by an upsampling."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, upsample: bool = False) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResBlock(widths[i], widths[i + 1], groups) for i in range(blocks))
        self.upsample: Upsample | None = Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Two residual blocks at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Images [B,in,H,W] -> latents [B,code_dim,H/f,W/f], f = 2^(levels-1).

    With `shortcut` a linear map of every f x f square is added, past the normalisations, which hide brightness and contrast.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], base: int, blocks: int, code_dim: int, groups: int,
        shortcut: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        inputs = [base, *widths[:-1]]
        self.down = nn.ModuleList(Level(i, o, blocks, groups) for i, o in zip(inputs, widths, strict=True))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], code_dim, 1)
        factor = 2 ** (len(widths) - 1)
        self.shortcut = nn.Conv2d(in_channels, code_dim, factor, factor) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for i, level in enumerate(self.down):
            h = level(h if i == 0 else F.avg_pool2d(h, 2))
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return h if self.shortcut is None else h + self.shortcut(x)


class Decoder(nn.Module):
    """Quantised latents [B,code_dim,h,w] -> images [B,out,h*f,w*f], not clamped. `up` is run from last to first.

    With `shortcut` a linear map of every latent to its f x f square is added, as in the encoder.
    """

    keep_in_fp32 = ("norm_out", "conv_out", "shortcut")  # half precision here would be seen as steps of a level

    def __init__(
        self, out_channels: int, widths: Sequence[int], blocks: int, code_dim: int, groups: int, shortcut: bool = False
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(code_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(i, o, blocks, groups, upsample=n > 0) for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        factor = 2 ** (len(widths) - 1)
        self.shortcut = nn.ConvTranspose2d(code_dim, out_channels, factor, factor) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(h.to(self.norm_out.weight.dtype))))
        return h if self.shortcut is None else h + self.shortcut(x.to(self.shortcut.weight.dtype))
