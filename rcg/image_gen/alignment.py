"""Representation alignment: a transformer's inner tokens are made to show what a frozen encoder sees at their place.

REPA (arXiv 2410.06940) adds to the loss how unlike the two are; training then needs fewer steps. What helps is where things
are rather than what they are (iREPA, arXiv 2512.10794): so the encoder's map is brought to mean 0 and deviation 1 over the
places of each image, channel by channel, and the tokens are projected by a 3 x 3 convolution. Nothing of it is left in the
trained model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.image_gen.protocol import ImageGenerator, Objective

DEFAULT_WEIGHT = 0.5
"""REPA's."""
DEPTH_SHARE = 3
"""One in so many of the blocks come before the tokens that are aligned, by default (REPA: 8 of 24 to 28)."""
EPS = 1e-5


class AlignedObjective(nn.Module):
    """An objective whose loss has `weight` · (1 − mean cosine of projected tokens and the encoder's map) added to it.

    See `rcg.image_gen.protocol.Objective`. Batches hold `images` uint8 [B, 3, S, S] beside codes and condition.

    Args:
        objective: of a transformer over a square grid of tokens.
        blocks: the transformer's blocks, whose outputs are tokens [B, L, W], row after row.
        encoder: images float [B, 3, S, S] in [0, 1] → `feature_maps(images, [-1])`, one [B, C, h, w] of any h and w.
        weight: of the alignment.
        depth: blocks before the tokens that are aligned, at least 1; None: a third of them.

    Raises:
        UserError: more blocks than there are, or an encoder that shows no maps.
    """

    def __init__(
        self,
        objective: Objective,
        blocks: list[nn.Module],
        encoder: nn.Module,
        weight: float = DEFAULT_WEIGHT,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        depth = max(1, len(blocks) // DEPTH_SHARE) if depth is None else depth
        if not 1 <= depth <= len(blocks):
            raise UserError(f"--align-depth {depth} is not among the {len(blocks)} blocks of this generator.")
        self.objective: Any = objective
        self.weight, self.depth = weight, depth
        # In a tuple, so that one is not registered a second time, and the other not trained, averaged and checkpointed.
        self._block, self._encoder = (blocks[depth - 1],), (encoder.eval().requires_grad_(False),)
        with torch.no_grad():
            device = next(encoder.parameters(), torch.empty(0)).device
            channels = self._map(torch.zeros(1, 3, 32, 32, device=device)).shape[1]
        self.projection = nn.Conv2d(int(self.model.config.width), channels, 3, padding=1)

    @property
    def encoder(self) -> nn.Module:
        """Frozen."""
        return self._encoder[0]

    @property
    def generator(self) -> ImageGenerator:
        """The objective's own, as are the following."""
        return self.objective.generator

    @property
    def model(self) -> Any:
        return self.objective.model

    @property
    def field(self) -> str:
        return self.objective.field

    @property
    def grouped(self) -> bool:
        return self.objective.grouped

    def encode(self, images: Tensor) -> Tensor:
        """The objective's own."""
        return self.objective.encode(images)

    def check_codes(self, codes: Tensor) -> None:
        """The objective's own."""
        self.objective.check_codes(codes)

    def evaluate(self, batch: dict[str, Tensor], seed: int) -> dict[str, float]:
        """The objective's own figures, which know nothing of alignment."""
        return self.objective.evaluate(batch, seed)

    def identity(self) -> dict[str, Any]:
        """The objective's own, and how much is aligned where."""
        return {**self.objective.identity(), "alignment": [self.weight, self.depth]}

    def forward(self, batch: dict[str, Tensor], *, condition_noise: Tensor | None = None) -> dict[str, Tensor]:
        """`loss` with the alignment in it, what the objective gives otherwise, and `alignment`, the mean cosine in [−1, 1]."""
        seen: list[Tensor] = []
        handle = self._block[0].register_forward_hook(lambda block, given, tokens: seen.append(tokens))
        try:
            figures = self.objective(batch, condition_noise=condition_noise)
        finally:
            handle.remove()
        similarity = self.similarity(seen[0], batch["images"].float() / 255).mean()
        return {**figures, "loss": figures["loss"] + self.weight * (1 - similarity), "alignment": similarity.detach()}

    def similarity(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Mean cosine over the places of each image, [B]: tokens [B, L, W], images float [B, 3, S, S] in [0, 1]."""
        side = round(tokens.shape[1] ** 0.5)
        with torch.no_grad():
            target = self._map(images).float()
            if target.shape[-2:] != (side, side):
                target = F.interpolate(target, (side, side), mode="bilinear", antialias=True)
            target = spatially_normalized(target)
        projected = self.projection(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return F.cosine_similarity(projected.float(), target, dim=1).flatten(1).mean(dim=1)

    def _map(self, images: Tensor) -> Tensor:
        return self.encoder.feature_maps(images, [-1])[0]  # type: ignore[operator]


def spatially_normalized(maps: Tensor) -> Tensor:
    """Maps [B, C, h, w] with mean 0 and deviation 1 over the places of each image, channel by channel (iREPA, §4)."""
    centred = maps - maps.mean(dim=(2, 3), keepdim=True)
    return centred / (centred.square().mean(dim=(2, 3), keepdim=True) + EPS).sqrt()
