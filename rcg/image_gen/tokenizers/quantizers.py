"""The quantisers of the tokenizer, one replaceable part: what a latent becomes, and what an id stands for.

`VectorQuantizer` takes the nearest code of a learned codebook (VQ-VAE, arXiv 1711.00937). `FiniteScalarQuantizer` rounds
each number of a latent to one of a few fixed values (FSQ, arXiv 2309.15505): its codebook is the grid of all of them, so
there is nothing to learn, to collapse, or to commit to. Both have `nearest`, `lookup` and a forward pass; ids are whole
numbers in [0, num_codes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.errors import UserError

_DISTANCES_AT_ONCE = 1 << 24  # fp32 entries of one block of the distance matrix: 64 MiB
_MARGIN = 1e-3
"""Share by which the bound stays within the outermost values; the paper's eps."""


class Quantized(NamedTuple):
    """What quantising gives."""

    latents: Tensor
    """[B,D,h,w] fp32: the codes' vectors, with the straight-through gradient to the encoder."""
    ids: Tensor
    """[B,h,w] int64."""
    commitment_loss: Tensor
    """Scalar: mean squared distance, pulling latents to the (detached) codes; 0 where codes are fixed."""


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
        return Quantized(straight_through, ids, F.mse_loss(latents, codes.detach()))


def count_codes(levels: Sequence[int]) -> int:
    """How many codes a finite scalar quantiser has: the product of its levels, each from 3 to 256.

    Raises:
        UserError: no levels, or more codes than ids are made for (2^24).
    """
    if not levels:
        raise UserError("levels is empty, but a finite scalar quantiser needs at least one; give e.g. 8 5 5 5.")
    if (codes := math.prod(levels)) > 2**24:
        raise UserError(f"levels {_list(levels)} make more than 2^24 = {2**24} codes; give fewer or smaller ones.")
    return codes


def _list(levels: Sequence[int]) -> str:
    return " ".join(map(str, levels[:8])) + (" …" if len(levels) > 8 else "")


class FiniteScalarQuantizer(nn.Module):
    """Rounds number d of a latent to one of levels[d] equidistant values (FSQ, arXiv 2309.15505, section 3.1 and appendix A.1).

    A latent z is squashed to b(z) = h tanh(z + s) - o with h = (1 - 1e-3) (L - 1) / 2; for odd L o = s = 0, and for even L
    o = 1/2 and s = artanh(o / h), so that b(0) = 0 and round(b) takes exactly L values, -floor(L/2) the least. The code is
    round(b) / floor(L/2), in [-1, 1], and its id counts from that least value in the mixed base of `levels`, the first
    number fastest. It has no weights.

    Args:
        levels: L of each number, from 3 to 256; their product is the number of codes.

    Raises:
        UserError: see `count_codes`.
    """

    sizes: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codes = count_codes(levels)
        # whole numbers: a model that is cast to half precision must not round them
        self.register_buffer("sizes", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "places", torch.tensor([math.prod(levels[:d]) for d in range(len(levels))]), persistent=False
        )

    def bound(self, latents: Tensor) -> Tensor:
        """b(z) of latents fp32 [...,D]: what rounding takes to whole numbers from -floor(L/2) on."""
        half = (self.sizes - 1).float() * ((1 - _MARGIN) / 2)
        offset = (1 - self.sizes % 2).float() / 2
        return half * torch.tanh(latents + torch.atanh(offset / half)) - offset

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """The code of each latent [N,D] -> int64 [N]."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self._ids(self.bound(vectors.float()))

    def _ids(self, bounded: Tensor) -> Tensor:
        digits = bounded.nan_to_num().round().long() + self.sizes // 2  # what is no number gets an id all the same
        return (digits * self.places).sum(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        """The codes of ids [B,h,w] as fp32 [B,D,h,w] in [-1, 1]."""
        digits = ids[..., None] // self.places % self.sizes
        return (digits.float() / (self.sizes // 2) - 1).permute(0, 3, 1, 2)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B,D,h,w] of any float type; to the gradient, rounding is the identity."""
        bounded = self.bound(latents.float().permute(0, 2, 3, 1))
        ids = self._ids(bounded.detach())
        scaled = (bounded / (self.sizes // 2)).permute(0, 3, 1, 2)
        none = torch.zeros((), device=latents.device)
        return Quantized(scaled + (self.lookup(ids) - scaled).detach(), ids, none)
