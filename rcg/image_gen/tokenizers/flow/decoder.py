"""A decoder that draws: a pixel transformer which makes a sharp image of what a tokenizer's decoder of convolutions makes of tokens.

A few tokens leave much of an image open. A decoder that is trained to come near to the image itself answers with the mean of
all that fit, which is blurred; a generator that is shown this mean draws one of them (SR3, arXiv 2104.07636, does so for
images that were shrunk; as a tokenizer's decoder: arXiv 2410.04081). Its noise follows from the tokens alone, so equal tokens give
equal images.
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

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
        patch_size, width, depth, num_heads, conv_channels, mlp_ratio: see `rcg.image_gen.pixel_dit.transformer.PixelDiT`.
        steps: evaluations for an image.
    """

    image_size: Size
    patch_size: Size
    width: Size
    depth: Depth
    num_heads: Depth
    conv_channels: list[Size]
    mlp_ratio: MlpRatio
    steps: Annotated[int, Range(1, 1000)]


class FlowDecoder(nn.Module):
    """Noisy image x_t = t · image + (1 − t) · noise at time t, and a blurred version of the image → the clean image.

    A `PixelDiT` without a condition of its own; the blurred image's patches join those of the noisy one.

    Args:
        in_channels: C of the images.
        sizes: of the transformer.

    Raises:
        UserError: sizes that do not go together.
    """

    keep_in_fp32 = ("net.patch_embed", "net.time_embed", "net.head", "blurred_embed")
    """Parts of `rcg.core.precision`'s bf16 copies that stay fp32."""

    def __init__(self, in_channels: int, sizes: FlowSizes) -> None:
        super().__init__()
        self.steps = sizes["steps"]
        shape: dict[str, Any] = {name: value for name, value in sizes.items() if name != "steps"}
        self.net = PixelDiT(in_channels=in_channels, condition="none", **shape)
        self.blurred_embed = nn.Linear(self.net.patch_embed.in_features, self.net.patch_embed.out_features, bias=False)
        nn.init.zeros_(self.blurred_embed.weight)  # a generator that it begins with knows no blurred images

    def forward(self, sample: Tensor, timestep: Tensor | float, blurred: Tensor) -> Tensor:
        """The clean image that a noisy one probably came from.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, 1] (1: no noise), one number, or [B].
            blurred: float [B, C, S, S], about in [−1, 1].

        Returns:
            float [B, C, S, S], about in [−1, 1].
        """
        clean: Tensor = self.net(sample, timestep, joined=self.embed(blurred))
        return clean

    def embed(self, blurred: Tensor) -> Tensor:
        """What `PixelDiT` takes of blurred images."""
        vectors: Tensor = self.blurred_embed(self.net.patches(blurred).to(self.blurred_embed.weight.dtype))
        return vectors

    @torch.no_grad()
    def draw(self, blurred: Tensor, seeds: Tensor) -> Tensor:
        """Images of blurred ones [B, C, S, S], with noise that follows from seeds int64 [B]: float32, about in [−1, 1]."""
        x = Noise.of(seeds).normal(0, blurred[0].numel()).view(blurred.shape)
        solver = FlowSolver(KarrasFlowScheduler(), self.steps, x.device)
        for i in range(len(solver)):
            clean = self(x, 1 - solver.noise_levels[i], blurred).float()
            x = solver.step(i, (x - clean) / solver.noise_levels[i], x)
        return x
