"""The parts of the tokenizer: convolutional encoder and decoder of the MaskGIT VQGAN, and its codebook.

They follow the released network to the letter (REFERENCE: MaskGIT, arXiv 2202.04200, and the PyTorch port in MAGE): residual
convolutions without bias, a 1x1 shortcut that acts on the *branch*, average pooling going down, nearest-neighbour
upsampling and a convolution going up, GroupNorm (eps 1e-6), SiLU, and no attention. Parameter names are those of the
released files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
_DISTANCES_AT_ONCE = 1 << 24  # fp32 entries of one block of the distance matrix: 64 MiB


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
    """Images [B,in,H,W] -> latents [B,code_dim,H/f,W/f], f = 2^(levels-1)."""

    def __init__(
        self, in_channels: int, widths: Sequence[int], base: int, blocks: int, code_dim: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        inputs = [base, *widths[:-1]]
        self.down = nn.ModuleList(Level(i, o, blocks, groups) for i, o in zip(inputs, widths, strict=True))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], code_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Quantised latents [B,code_dim,h,w] -> images [B,out,h*f,w*f], not clamped. `up` is run from last to first."""

    keep_in_fp32 = ("norm_out", "conv_out")  # half precision here would be seen as steps of a level

    def __init__(self, out_channels: int, widths: Sequence[int], blocks: int, code_dim: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(code_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(i, o, blocks, groups, upsample=n > 0) for n, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x.to(self.norm_out.weight.dtype))))


class Quantized(NamedTuple):
    """What quantising gives."""

    latents: Tensor
    """[B,D,h,w] fp32: the codes' vectors, with the straight-through gradient to the encoder."""
    ids: Tensor
    """[B,h,w] int64."""
    codebook_loss: Tensor
    """Scalar: mean squared distance, pulling codes to the (detached) latents."""
    commitment_loss: Tensor
    """Scalar: the same number, pulling latents to the (detached) codes."""


class VectorQuantizer(nn.Module):
    """A codebook [num_codes, code_dim] and the search for the nearest code, always in fp32."""

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """The code of least squared distance to each vector [N,D] -> int64 [N], in blocks of at most 64 MiB."""
        with torch.autocast(vectors.device.type, enabled=False):
            codes = self.embedding.weight.float()
            norms = codes.square().sum(1)
            blocks = vectors.float().split(max(1, _DISTANCES_AT_ONCE // len(codes)))
            # |v-c|^2 = |v|^2 - 2 v.c + |c|^2, of which the first term is the same for all codes
            return torch.cat([torch.addmm(norms, block, codes.t(), alpha=-2.0).argmin(1) for block in blocks])

    def lookup(self, ids: Tensor) -> Tensor:
        """The vectors of ids [B,h,w] as fp32 [B,D,h,w]."""
        return F.embedding(ids, self.embedding.weight).float().permute(0, 3, 1, 2)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B,D,h,w] of any float type."""
        latents = latents.float()
        b, d, h, w = latents.shape
        ids = self.nearest(latents.detach().permute(0, 2, 3, 1).reshape(-1, d)).reshape(b, h, w)
        codes = self.lookup(ids)
        straight_through = latents + (codes - latents).detach()
        return Quantized(
            straight_through, ids, F.mse_loss(codes, latents.detach()), F.mse_loss(latents, codes.detach())
        )
