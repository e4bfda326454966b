"""The quick way through a generation: most tokens of a step were there the step before, so their work is kept.

The published sampler sends all N + 1 tokens through encoder and decoder at every step. Here

- a masked token that training would have dropped from the encoder stays out of it (MAGE drops half of all tokens, or the
  model's `mask_ratio_min`, so the encoder sees the length that it was trained on);
- between refreshes only tokens that have just been revealed go through the encoder, and only these and the masked ones
  through the decoder; they look at the remembered keys and values of the others (ReCAP, arXiv 2505.19089);
- the word head is asked about masked tokens alone.

On CPUs images are evaluated in blocks of a fixed number, layer by layer, so that an image's bits do not depend on its
batch (see `rcg.core.blocks`) while a layer's weights are read once for all blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rcg.core.blocks import rows_of_block
from rcg.image_gen.mage.layers import Block, Memory
from rcg.image_gen.mage.transformer import MageTransformer

BLOCK_TOKENS = 256
"""About so many tokens are evaluated together on a CPU."""


class ReusingEvaluator:
    """Logits of masked tokens, step after step of one generation of B images.

    Args:
        model: in evaluation mode.
        representations, class_labels: see `MageTransformer.condition_slot`.
        batch_size: B.
    """

    def __init__(
        self, model: MageTransformer, representations: Tensor | None, class_labels: Tensor | None, batch_size: int
    ) -> None:
        self.model = model
        slot = model.condition_slot(batch_size, representations, class_labels)
        rows = rows_of_block(BLOCK_TOKENS // model.num_tokens, batch_size, model.device)
        index = torch.arange(-(-batch_size // rows) * rows, device=model.device).clamp_max(batch_size - 1)
        self.blocks = [_Images(model, slot, some) for some in index.split(rows)]
        self.batch_size = batch_size
        self.masked: Tensor | None = None  # at the last call

    def __call__(self, ids: Tensor, masked: Tensor, refresh: bool) -> Tensor:
        """Logits [B, M, num_codes] of the masked positions.

        Args:
            ids: int64 [B, N], code ids or `mask_token_id`; what was revealed at an earlier call stays so.
            masked: int64 [B, M], the masked positions.
            refresh: evaluate everything anew, as the first call does anyway.
        """
        revealed = None
        if self.masked is not None and not refresh:
            now_known = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, self.masked, True)
            now_known.scatter_(1, masked, False)
            revealed = places_of(now_known, self.masked.shape[1] - masked.shape[1])
        self.masked = masked
        model, blocks = self.model, self.blocks
        for images in blocks:
            images.enter_encoder(ids, masked, revealed)
        _run(model.blocks, blocks, [images.encoder for images in blocks])
        for images in blocks:
            images.enter_decoder(masked, revealed)
        _run(model.decoder_blocks, blocks, [images.decoder for images in blocks])
        return torch.cat([images.logits(masked.shape[1]) for images in blocks])[: self.batch_size]


class _Images:
    """The state of a block of images: remembered keys and values, and the tokens under way through the layers."""

    def __init__(self, model: MageTransformer, slot: Tensor | None, index: Tensor) -> None:
        self.model, self.index = model, index
        self.slot = None if slot is None else slot[index]
        count, places = len(index), model.num_tokens + 1
        like, config = model.decoder_pos_embed_learned, model.config
        self.encoder = [Memory(count, places, config.width, like) for _ in model.blocks]
        self.decoder = [Memory(count, places, config.decoder_width, like) for _ in model.decoder_blocks]
        self.seen = torch.zeros((count, places), dtype=torch.bool, device=index.device)
        self.spread = _spread(model.config.grid_size, index.device)
        self.x, self.places = torch.empty(0), torch.empty(0)  # of the tokens under way
        self.bias: Tensor | None = None

    def enter_encoder(self, ids: Tensor, masked: Tensor, revealed: Tensor | None) -> None:
        model, ids = self.model, ids[self.index]
        if revealed is None:
            tokens = model.num_tokens
            self.known = tokens - masked.shape[1]
            shown = max(tokens - math.ceil(tokens * model.config.mask_ratio_min), self.known)
            # the known ones in raster order, then masked ones from all over the image
            raster = torch.arange(tokens, device=ids.device)
            rank = torch.where(ids == model.config.mask_token_id, tokens + self.spread, raster)
            positions = rank.argsort(dim=1)[:, :shown]
            self.seen.zero_()
        else:
            positions = revealed[self.index]
            self.known = positions.shape[1]
        self.x = model.embed(ids.gather(1, positions), self.slot, positions)
        self.places = torch.cat([torch.zeros_like(ids[:, :1]), positions + 1], dim=1)
        self.seen.scatter_(1, self.places, True)
        allowed = torch.zeros(self.seen.shape, dtype=self.x.dtype, device=self.x.device)
        self.bias = allowed.masked_fill_(~self.seen, -math.inf)[:, None, None]

    def enter_decoder(self, masked: Tensor, revealed: Tensor | None) -> None:
        model, masked = self.model, masked[self.index]
        x = model.decoder_embed(model.norm(self.x))
        slot, known = x[:, :1], x[:, 1 : 1 + self.known]
        self.places = torch.cat([self.places[:, : 1 + self.known], masked + 1], dim=1)
        self.x = torch.cat([slot, known, slot.expand(-1, masked.shape[1], -1)], dim=1)
        self.x = self.x + model.decoder_pos_embed_learned[0][self.places]
        self.bias = None  # from the first call on, every place has been here

    def rows(self) -> Tensor:
        """Where the tokens under way stand in the memory, see `Memory.write`."""
        count, places = self.seen.shape
        return (self.places + places * torch.arange(count, device=self.places.device)[:, None]).flatten()

    def logits(self, masked: int) -> Tensor:
        hidden = self.model.decoder_norm(self.x[:, -masked:])
        return self.model.token_logits(hidden, self.model.config.num_codes)


def _run(layers: nn.ModuleList, blocks: Sequence[_Images], memories: Sequence[Sequence[Memory]]) -> None:
    rows_of = [images.rows() for images in blocks]
    for i, layer in enumerate(layers):
        for images, memory, rows in zip(blocks, memories, rows_of, strict=True):
            images.x = cast(Block, layer).extend(images.x, memory[i], rows, images.bias)


def places_of(flags: Tensor, count: int) -> Tensor:
    """int64 [B, count]: where flags [B, N] are set, in ascending order; each row has `count` of them."""
    return flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count].contiguous()


@functools.cache
def _spread(side: int, device: torch.device) -> Tensor:
    """int64 [side²]: ranks of the positions such that the first few lie all over the image (Roberts' R2 sequence)."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    place = (row.double() * 0.7548776662466927 + column.double() * 0.5698402909980532).frac().flatten()
    return place.argsort(stable=True).argsort().to(device)
