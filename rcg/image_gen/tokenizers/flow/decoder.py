"""A tokenizer's decoder that paints: a pixel transformer which draws, from noise and the codes, one image of many that fit.

A few tokens leave much of an image open. A decoder that is trained to come near to the image itself answers with the mean of
all that fit, which is blurred; a generator with the codes as its condition draws one of them (diffusion autoencoders, arXiv
2111.15640; as a decoder of tokens, arXiv 2501.09755, section 3). Its noise follows from the tokens alone, so equal tokens
give equal images.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

import torch
from torch import Tensor, nn

from rcg.core.flow import FlowSolver
from rcg.core.rng import Noise
from rcg.core.schema import Depth, MlpRatio, Range, Size
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler


class FlowSizes(TypedDict):
    """Of a flow decoder.

    Attributes:
        image_size: S, side in pixels of the images that it draws.
        width, depth, num_heads, conv_channels, mlp_ratio: see `rcg.image_gen.pixel_dit.transformer.PixelDiT`.
        steps: evaluations for an image.
    """

    image_size: Size
    width: Size
    depth: Depth
    num_heads: Depth
    conv_channels: list[Size]
    mlp_ratio: MlpRatio
    steps: Annotated[int, Range(1, 1000)]


class FlowDecoder(nn.Module):
    """Noisy image x_t = t · image + (1 − t) · noise at time t, and the codes of its tokens → the clean image.

    A `PixelDiT` whose patches are the tokens' squares of pixels; a linear map of each code joins its patch.

    Args:
        factor: pixels of a token's side.
        in_channels: C of the images.
        code_dim: D, numbers in a code.
        sizes: of the transformer.

    Raises:
        UserError: sizes that do not go together.
    """

    keep_in_fp32 = ("net.patch_embed", "net.time_embed", "net.head", "code_embed")
    """Parts of `rcg.core.precision`'s bf16 copies that stay fp32."""

    def __init__(self, factor: int, in_channels: int, code_dim: int, sizes: FlowSizes) -> None:
        super().__init__()
        self.steps = sizes["steps"]
        self.net = PixelDiT(
            image_size=sizes["image_size"],
            patch_size=factor,
            in_channels=in_channels,
            width=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            conv_channels=list(sizes["conv_channels"]),
            mlp_ratio=sizes["mlp_ratio"],
            condition="none",
        )
        self.code_embed = nn.Linear(code_dim, sizes["width"])
        nn.init.zeros_(self.code_embed.weight)  # what it begins with knows no tokens
        nn.init.zeros_(self.code_embed.bias)

    def forward(self, sample: Tensor, timestep: Tensor | float, codes: Tensor) -> Tensor:
        """The clean image that a noisy one probably came from.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, 1] (1: no noise), one number, or [B].
            codes: float [B, D, S / factor, S / factor].

        Returns:
            float [B, C, S, S], about in [−1, 1].
        """
        clean: Tensor = self.net(sample, timestep, tokens=self.tokens(codes))
        return clean

    def tokens(self, codes: Tensor) -> Tensor:
        """What `PixelDiT` takes of codes [B, D, h, w]: [B, h · w, width]."""
        vectors: Tensor = self.code_embed(codes.flatten(2).transpose(1, 2).to(self.code_embed.weight.dtype))
        return vectors

    @torch.no_grad()
    def draw(self, codes: Tensor, seeds: Tensor) -> Tensor:
        """Images of codes [B, D, h, w], whose noise follows from seeds int64 [B]: float32 [B, C, S, S], about in [−1, 1]."""
        config = self.net.config
        shape = (len(codes), config.in_channels, config.image_size, config.image_size)
        x = Noise.of(seeds).normal(0, config.in_channels * config.image_size**2).view(shape)
        solver = FlowSolver(KarrasFlowScheduler(), self.steps, x.device)
        for i in range(len(solver)):
            clean = self(x, 1 - solver.noise_levels[i], codes).float()
            x = solver.step(i, (x - clean) / solver.noise_levels[i], x)
        return x
