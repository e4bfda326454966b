"""DiT: a diffusion transformer that tells the noise in a noisy latent ("Scalable Diffusion Models with Transformers").

arXiv 2212.09748, in the form that RCG (arXiv 2312.03701) gave it: the condition, a representation, is embedded by a linear
layer and added to the embedded time. Computed as in the reference (LTH14/rcg); parameters are named such that its files
convert by renaming, see `rcg.published.dit`. Its objective and sampling are those of `rcg.image_gen.diffusion`.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from rcg.core.component import Settled
from rcg.core.schema import Classes, CountOrZero, Depth, MlpRatio, Range, ShareBelowOne, Size, check_arguments
from rcg.image_gen.conditions import Condition, condition_embedding
from rcg.image_gen.denoising import check_divisible, check_sample, time_and_condition
from rcg.image_gen.latent_dit.layers import Block
from rcg.image_gen.pixel_dit.layers import Head
from rcg.image_gen.prediction import PredictionType

TIME_CHANNELS = 256
INIT_STD = 0.02
"""Of the embeddings of time, classes and the null representation."""


def positions(width: int, side: int) -> Tensor:
    """The fixed embedding of side² places, float32 [side², width]: sines and cosines of the column, then of the row."""
    return get_2d_sincos_pos_embed(width, side, base_size=side).float()


class DiT(Settled, ModelMixin, ConfigMixin):
    """Noisy latents x_t, at step t (+ condition) → the noise in them, and the model's choice of variance.

    (Or velocity in the place of noise, as `prediction_type` says.)

    Args:
        sample_size: S, side of the latents, a multiple of the patch size.
        patch_size: side of a patch; there are (S / patch_size)² tokens.
        in_channels: C, of the latents.
        width, depth, num_heads: size of the residual stream (a multiple of the heads and of 4), blocks, heads a block.
        mlp_ratio: hidden size of the MLPs as a multiple of the width.
        learn_sigma: choose the variance of a sampling step, too (arXiv 2102.09672); the output then has 2C channels.
        condition: what images are made from: "representation", "class", "cluster" or "none".
        representation_dim: size of a representation (condition "representation").
        num_classes: number of classes or clusters.
        condition_dropout: share of training samples whose condition is replaced by the learned null condition, which
            guidance contrasts with; 0 means that the model cannot be guided. In [0, 1).
        label_counts: how often each class or cluster is to be drawn, relative to the others; None: all alike.
        prediction_type: noise (epsilon), as published, or velocity, see `rcg.image_gen.prediction`.

    Raises:
        UserError: a size cannot be used (heads that do not divide the width, …).
    """

    keep_in_fp32 = ("patch_embed", "time_embed", "condition_embed", "head")
    """Parts of `rcg.core.precision`'s bf16 copies that stay fp32: what enters and what leaves."""

    @register_to_config
    def __init__(
        self,
        sample_size: Size = 32,
        patch_size: Annotated[int, Range(1, 16)] = 2,
        in_channels: Size = 4,
        width: Size = 1024,
        depth: Depth = 24,
        num_heads: Depth = 16,
        mlp_ratio: MlpRatio = 4.0,
        learn_sigma: bool = True,
        condition: Condition = "representation",
        representation_dim: Size | None = None,
        num_classes: Classes | None = None,
        condition_dropout: ShareBelowOne = 0.1,
        label_counts: list[CountOrZero] | None = None,
        prediction_type: PredictionType = "epsilon",
    ) -> None:
        super().__init__()
        check_arguments(self)
        check_divisible(
            (
                ("sample_size", sample_size, patch_size, f"patches of {patch_size} do"),
                ("width", width, num_heads, f"{num_heads} heads do"),
                ("width", width, 4, "4 does"),
            )
        )
        self.time_features = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(TIME_CHANNELS, width)
        sizes = (representation_dim, num_classes)
        self.condition_embed = condition_embedding(condition, *sizes, width, has_null=condition_dropout > 0)
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        side = sample_size // patch_size
        self.register_buffer("positions", positions(width, side), persistent=False)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.head = Head(width, (1 + learn_sigma) * in_channels * patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        """The reference's: Xavier for linear layers, 0 for modulations and the output, small numbers for embeddings."""
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in [*self.blocks, self.head]:
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.head.linear.weight)
        nn.init.normal_(self.time_embed.linear_1.weight, std=INIT_STD)
        nn.init.normal_(self.time_embed.linear_2.weight, std=INIT_STD)
        if self.condition_embed is not None:
            small = (
                self.condition_embed.null if self.config.condition == "representation" else self.condition_embed.weight
            )
            nn.init.normal_(small, std=INIT_STD)  # type: ignore[arg-type]

    @property
    def num_tokens(self) -> int:
        """Patches of a latent image."""
        return int(self.config.sample_size // self.config.patch_size) ** 2

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """The noise in noisy latents. A conditional model without condition is unconditional.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, T), one number, or [B].
            representations: float [B, representation_dim]; None is the null representation for all.
            class_labels: int64 [B] in [0, num_classes); None is the null class for all.
            drop_condition: bool [B]; True replaces this sample's condition by the null one.

        Returns:
            float [B, C, S, S]; with `learn_sigma` [B, 2C, S, S], of which the second half chooses the variance: −1 is the
            least, 1 the most.

        Raises:
            UserError: latents of another size, or a condition that this model does not take.
        """
        config = self.config
        check_sample(sample, config.in_channels, config.sample_size, "latents")
        times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        vector = F.silu(time_and_condition(self, times, representations, class_labels, drop_condition))
        patches = self.patch_embed(sample.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        x = (patches + self.positions).to(self.positions.dtype)
        for block in self.blocks:
            x = block(x, vector.to(x.dtype))
        side, size = config.sample_size // config.patch_size, config.patch_size
        grid = self.head(x, vector).unflatten(1, (side, side)).unflatten(3, (size, size, -1))  # [B, h, w, p, q, C]
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
