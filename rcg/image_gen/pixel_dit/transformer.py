"""PixelDiT: a diffusion transformer on pixels, which predicts the clean image from a noisy one.

For small images it needs no tokenizer: patches of a few pixels are its tokens, and it names the clean image, which lies
near a manifold, rather than noise ("Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720). Time and
condition enter by adaLN-zero (DiT, arXiv 2212.09748). Convolutions at higher resolutions before and after the transformer
(as in Simple Diffusion, arXiv 2301.11093, and HDiT, arXiv 2401.11605) see to what joins the patches. Its objective is in `rcg.image_gen.pixels.objective`, sampling in
`rcg.image_gen.pixels.sampling`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from rcg.core.component import Settled
from rcg.core.schema import Classes, CountOrZero, Depth, MlpRatio, Range, ShareBelowOne, Size, check_arguments
from rcg.image_gen.conditions import Condition, condition_embedding
from rcg.image_gen.denoising import check_divisible, check_sample, time_and_condition
from rcg.image_gen.pixel_dit.layers import Block, ConvBlock, ConvLevel, Head

TIME_SCALE = 1000
"""The sinusoidal embedding is made for times of about this length."""
TIME_CHANNELS = 256

BLOCK_TOKENS = 1024
"""About so many tokens are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""


class PixelDiT(Settled, ModelMixin, ConfigMixin):
    """Noisy image x_t = t · image + (1 − t) · noise, at time t (+ condition) → the clean image.

    Images are in [−1, 1]; t goes from 0 (noise) to 1 (the image).

    Args:
        image_size: S, side of the images in pixels, a multiple of the patch size.
        patch_size: side of a patch; there are (S / patch_size)² tokens.
        conv_channels: of the convolutional levels around the transformer, finest first, each at half of the resolution of
            the one before; the last works at twice the resolution of the tokens. So many times 2 must divide the patch
            size. Empty: patches are the transformer's input and output.
        in_channels: of the images; a pipeline needs 3.
        width, depth, num_heads: size of the residual stream (a multiple of the heads and of 4), blocks, heads a block.
        mlp_ratio: hidden size of the MLPs as a multiple of the width.
        dropout: of attention weights and in MLPs while training, in [0, 1).
        condition: what images are made from: "representation", "class", "cluster" or "none".
        representation_dim: size of a representation (condition "representation").
        num_classes: number of classes or clusters.
        condition_dropout: share of training samples whose condition is replaced by the learned null condition, which
            guidance contrasts with; 0 means that the model cannot be guided. In [0, 1).
        label_counts: how often each class or cluster is to be drawn, relative to the others; None: all alike.

    Raises:
        UserError: a size cannot be used (heads that do not divide the width, …).
    """

    keep_in_fp32 = ("patch_embed", "time_embed", "condition_embed", "head")
    """Parts of `rcg.core.precision`'s bf16 copies that stay fp32: an image needs more than bf16's eight bits."""

    @register_to_config
    def __init__(
        self,
        image_size: Size = 32,
        patch_size: Annotated[int, Range(2, 8)] = 4,
        in_channels: Size = 3,
        width: Size = 256,
        depth: Depth = 8,
        num_heads: Depth = 4,
        mlp_ratio: MlpRatio = 4.0,
        dropout: ShareBelowOne = 0.0,
        condition: Condition = "representation",
        representation_dim: Size | None = None,
        num_classes: Classes | None = None,
        condition_dropout: ShareBelowOne = 0.1,
        label_counts: list[CountOrZero] | None = None,
        conv_channels: list[Size] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(self)
        channels = list(conv_channels or [])
        times = 2 ** len(channels)
        check_divisible(
            (
                ("image_size", image_size, patch_size, f"patches of {patch_size} pixels do"),
                ("patch_size", patch_size, times, f"{len(channels)} levels of convolutions do"),
                ("width", width, num_heads, f"{num_heads} heads do"),
                ("width", width, 4, "4 does"),
            )
        )
        self.finest = finest = patch_size // times
        values = in_channels * finest**2
        self.time_features = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(TIME_CHANNELS, width)
        sizes = (representation_dim, num_classes)
        self.condition_embed = condition_embedding(condition, *sizes, width, has_null=condition_dropout > 0)
        widths = [*channels, width]
        self.patch_embed = nn.Linear(values, widths[0])
        self.levels = nn.ModuleList(
            ConvLevel(here, deeper, image_size // finest // 2**i, width)
            for i, (here, deeper) in enumerate(pairwise(widths))
        )
        side = image_size // patch_size
        self.register_buffer("positions", build_sincos2d_pos_embed([side, side], width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, num_heads, side, mlp_ratio, dropout) for _ in range(depth))
        self.head = Head(widths[0], values, width)
        self._initialise()

    def _initialise(self) -> None:
        """DiT's: Xavier for linear layers, 0 for modulations and the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        for module in self.modules():
            if isinstance(module, Block | ConvBlock | Head):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.head.linear.weight)
        if self.config.condition == "representation":
            nn.init.normal_(self.condition_embed.null, std=0.02)  # type: ignore[arg-type, union-attr]

    @property
    def num_tokens(self) -> int:
        """Patches of an image."""
        return int(self.config.image_size // self.config.patch_size) ** 2

    @property
    def block_rows(self) -> int:
        """Images that are evaluated together on a CPU."""
        return BLOCK_TOKENS // self.num_tokens

    def patches(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] → their squares as they are embedded, [B, L, values], of the finest level of convolutions or whole."""
        return F.pixel_unshuffle(images, self.finest).flatten(2).transpose(1, 2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
        joined: Tensor | None = None,
    ) -> Tensor:
        """The clean image that a noisy one probably came from. A conditional model without condition is unconditional.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, 1] (1: no noise), one number, or [B].
            representations: float [B, representation_dim]; None is the null representation for all.
            class_labels: int64 [B] in [0, num_classes); None is the null class for all.
            drop_condition: bool [B]; True replaces this sample's condition by the null one.
            joined: float [B, L, channels], of the shape of the embedded patches (of the finest level of convolutions, if there are
                such), which it is added to: what else is known of each place.

        Returns:
            float [B, C, S, S], about in [−1, 1].

        Raises:
            UserError: images of another size, or a condition that this model does not take.
        """
        config = self.config
        check_sample(sample, config.in_channels, config.image_size, "images")
        times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        vector = F.silu(time_and_condition(self, TIME_SCALE * times, representations, class_labels, drop_condition))
        x = self.patch_embed(self.patches(sample).to(self.patch_embed.weight.dtype))
        x = x if joined is None else x + joined
        dtype = _stream_dtype(self.positions)
        inner, kept = vector.to(dtype), []
        levels = cast(list[ConvLevel], list(self.levels))
        for level in levels:
            maps, x = level.descend(x.to(dtype), inner)
            kept.append(maps)
        x = (x + self.positions).to(dtype)
        for block in self.blocks:
            x = block(x, inner)
        for level in reversed(levels):
            x = level.ascend(x, kept.pop(), inner)
        patches = self.head(x, vector).transpose(1, 2)
        side = config.image_size // self.finest
        return F.pixel_shuffle(patches.unflatten(2, (side, side)), self.finest)


def _stream_dtype(positions: Tensor) -> torch.dtype:
    """Of the residual stream: the model's own, but bf16 on CPUs under autocast, where casts would take a tenth of a step."""
    if positions.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return positions.dtype
