"""LDM: the U-Net of "High-Resolution Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752), with cross-attention.

The network is diffusers' `UNet2DConditionModel`, set such that it computes what latent-diffusion's `UNetModel` does with
spatial transformers at every level. What images are made from is one token that all places attend to (RCG, arXiv
2312.03701, appendix B): the representation itself, the embedded class, or a learned constant.
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from rcg.core.component import Settled
from rcg.core.schema import Classes, CountOrZero, Depth, GridSize, ShareBelowOne, Size, check_arguments
from rcg.image_gen.conditions import ClassEmbedding, Condition, RepresentationToken, check_given, check_sizes
from rcg.image_gen.denoising import check_divisible, check_sample
from rcg.image_gen.prediction import PredictionType
from rcg.image_gen.unets import check_levels, make_quick, zero


class LDMUNet(Settled, ModelMixin, ConfigMixin):
    """Noisy latents x_t at time t (+ condition) → the noise in them, or velocity, as `prediction_type` says.

    Args:
        sample_size: S, side of the latents; each level but the first halves it.
        in_channels: C of the latents.
        base_channels: width of the finest level, a multiple of `norm_groups`.
        channel_multipliers: width of each level, finest first, in units of `base_channels`; the first is 1.
        num_res_blocks: residual blocks of each level on the way down, each with a transformer block; one more on the way up.
        head_channels: width of an attention head, which divides the width of every level.
        token_dim: size of the token of a class or cluster, or of condition "none"; a representation is its own token.
        norm_groups: of every norm, 32 in the published model; fewer for narrow ones, see `rcg.image_gen.unets.norm_groups`.
        dropout: in residual blocks while training, in [0, 1).
        condition: what images are made from: "representation", "class", "cluster" or "none".
        representation_dim: size of a representation (condition "representation").
        num_classes: number of classes or clusters.
        condition_dropout: share of training samples whose condition is replaced by the learned null condition, which
            guidance contrasts with; 0 means that the model cannot be guided. In [0, 1).
        label_counts: how often each class or cluster is to be drawn, relative to the others; None: all alike.
        prediction_type: noise (epsilon), as published, or velocity, see `rcg.image_gen.prediction`.

    Raises:
        UserError: a size cannot be used (levels that do not divide the grid, …).
    """

    keep_in_fp32 = ("token_embed",)
    """Parts of `rcg.core.precision`'s bf16 copies that stay fp32."""

    @register_to_config
    def __init__(
        self,
        sample_size: GridSize = 32,
        in_channels: Size = 4,
        base_channels: Size = 256,
        channel_multipliers: tuple[Depth, ...] = (1, 2, 4),
        num_res_blocks: Depth = 2,
        head_channels: Size = 32,
        token_dim: Size = 512,
        norm_groups: Size = 32,
        dropout: ShareBelowOne = 0.0,
        condition: Condition = "representation",
        representation_dim: Size | None = None,
        num_classes: Classes | None = None,
        condition_dropout: ShareBelowOne = 0.1,
        label_counts: list[CountOrZero] | None = None,
        prediction_type: PredictionType = "epsilon",
    ) -> None:
        super().__init__()
        check_arguments(self)
        check_sizes(condition, representation_dim, num_classes)
        widths = [base_channels * m for m in channel_multipliers]
        check_levels(channel_multipliers, sample_size, "the latents' side")
        check_divisible(
            (
                ("base_channels", base_channels, norm_groups, f"{norm_groups} norm_groups do"),
                ("base_channels", base_channels, head_channels, f"head_channels {head_channels} does"),
            )
        )
        self.token_embed: RepresentationToken | ClassEmbedding
        if condition == "representation":
            token_dim = representation_dim or 1
            self.token_embed = RepresentationToken(token_dim, condition_dropout > 0)
        elif condition == "none":
            self.token_embed = ClassEmbedding(1, token_dim, has_null=False)
        else:
            self.token_embed = ClassEmbedding(num_classes or 1, token_dim, has_null=condition_dropout > 0)
        self.unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("CrossAttnDownBlock2D",) * len(widths),
            up_block_types=("CrossAttnUpBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=num_res_blocks,
            dropout=dropout,
            norm_num_groups=norm_groups,
            cross_attention_dim=token_dim,
            attention_head_dim=tuple(width // head_channels for width in widths),  # diffusers means the number of heads
        )
        make_quick(self.unet)
        self._initialise()

    def _initialise(self) -> None:
        """The reference's zeros: every residual branch and the output begin without effect."""
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D):
                zero(module.conv2)
            elif isinstance(module, Transformer2DModel):
                zero(module.proj_out)
        zero(self.unet.conv_out)
        if isinstance(self.token_embed, RepresentationToken):
            nn.init.normal_(self.token_embed.null, std=0.02)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """The noise in x_t. A conditional model without condition is unconditional.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, 1000), one number, or [B].
            representations: float [B, representation_dim]; None is the null representation for all.
            class_labels: int64 [B] in [0, num_classes); None is the null class for all.
            drop_condition: bool [B]; True replaces this sample's condition by the null one.

        Returns:
            float [B, C, S, S].

        Raises:
            UserError: latents of another size, or a condition that this model does not take.
        """
        config = self.config
        check_sample(sample, config.in_channels, config.sample_size, "latents")
        given = check_given(config, len(sample), representations, class_labels)
        dtype = self.unet.conv_in.weight.dtype
        tokens = self.token_embed(given, len(sample), drop_condition)[:, None].to(dtype)
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        return self.unet(sample.to(dtype), times, tokens, return_dict=False)[0]
