"""DiT as an `ImageGenerator`: the transformer, a scheduler of diffusers and an autoencoder together."""

from __future__ import annotations

from rcg.image_gen.diffusion.generator import LatentGenerator
from rcg.image_gen.latent_dit.transformer import DiT

BLOCK_TOKENS = 1024
"""About so many tokens are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""


class DiTGenerator(LatentGenerator):
    """See `rcg.image_gen.protocol.ImageGenerator`. Its codes are latents, float32 [B, C, S, S].

    `exact` is the reference's sampler: ancestral sampling with 250 steps, guided on the first three channels only (the
    reference, and DiT before it, keep that for the sake of their published figures). The quick way guides all.
    """

    model: DiT
    exact_guided_channels = 3

    @property
    def block_rows(self) -> int:
        return BLOCK_TOKENS // self.model.num_tokens
