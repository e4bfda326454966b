"""ADM: the U-Net of "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233), on pixels.

The network is diffusers' `UNet2DModel`, set such that it computes what OpenAI's `UNetModel` does with scale-shift norms,
residual up- and downsampling and heads of a fixed width. RCG (arXiv 2312.03701, appendix B) adds the projected representation
to the embedded time, as class embeddings are; so does this model, and adds the null condition that RCG's ADM lacks.
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from rcg.core.component import Settled
from rcg.core.errors import UserError
from rcg.core.schema import Classes, CountOrZero, Depth, ShareBelowOne, Size, check_arguments
from rcg.image_gen.conditions import Condition, RepresentationEmbedding, check_given, condition_embedding
from rcg.image_gen.denoising import check_divisible, check_sample
from rcg.image_gen.prediction import PredictionType
from rcg.image_gen.unets import check_levels, make_quick, zero


class ADMUNet(Settled, ModelMixin, ConfigMixin):
    """Noisy image x_t at time t (+ condition) → the noise in it, and where its variance lies between two bounds.

    (Or velocity in the place of noise, as `prediction_type` says.)

    Args:
        sample_size: S, side of the images in pixels; each level but the first halves it.
        in_channels: C of the images; a pipeline needs 3.
        base_channels: width of the finest level, a multiple of `norm_groups`.
        channel_multipliers: width of each level, finest first, in units of `base_channels`; the first is 1.
        num_res_blocks: residual blocks of each level on the way down; one more on the way up.
        attention_resolutions: sides in pixels of the levels with self-attention; the coarsest always has one in the middle.
        head_channels: width of an attention head, which divides the width of every level with attention.
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
        UserError: a size cannot be used (levels that do not divide the image, …).
    """

    keep_in_fp32 = ("condition_embed",)
    """Parts of `rcg.core.precision`'s bf16 copies that stay fp32."""

    @register_to_config
    def __init__(
        self,
        sample_size: Size = 256,
        in_channels: Size = 3,
        base_channels: Size = 256,
        channel_multipliers: tuple[Depth, ...] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: Depth = 2,
        attention_resolutions: tuple[Size, ...] = (32, 16, 8),
        head_channels: Size = 64,
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
        widths = [base_channels * m for m in channel_multipliers]
        sides = [sample_size // 2**level for level in range(len(widths))]
        attends = [side in attention_resolutions for side in sides]
        self._check(widths, sides, attends)
        vector = 4 * base_channels
        self.condition_embed = condition_embedding(
            condition, representation_dim, num_classes, vector, has_null=condition_dropout > 0
        )
        down = tuple("AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends)
        up = tuple("AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in reversed(attends))
        self.unet = UNet2DModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=2 * in_channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=tuple(widths),
            layers_per_block=num_res_blocks,
            downsample_type="resnet",
            upsample_type="resnet",
            dropout=dropout,
            attention_head_dim=head_channels,
            norm_num_groups=norm_groups,
            attn_norm_num_groups=norm_groups,  # without it, that in the middle has no norm
            resnet_time_scale_shift="scale_shift",
            class_embed_type=None if condition == "none" else "identity",
        )
        make_quick(self.unet)
        self._initialise()

    def _check(self, widths: list[int], sides: list[int], attends: list[bool]) -> None:
        """Refuse sizes that do not go together."""
        config = self.config
        check_levels(config.channel_multipliers, config.sample_size, "sample_size")
        check_divisible(
            [("base_channels", config.base_channels, config.norm_groups, f"{config.norm_groups} norm_groups do")]
        )
        if unknown := sorted(set(config.attention_resolutions) - set(sides)):
            raise UserError(
                f"attention_resolutions holds {unknown[0]}, but the levels have sides {', '.join(map(str, sides))}; choose "
                "among those."
            )
        for width, attend in zip(widths, [*attends[:-1], True], strict=True):
            if attend and width % config.head_channels:
                raise UserError(
                    f"head_channels is {config.head_channels}, which does not divide the {width} channels of a level with "
                    "attention; choose another size."
                )

    def _initialise(self) -> None:
        """The reference's zeros: every residual branch, the output and the condition's projection begin without effect."""
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D):
                zero(module.conv2)
            elif isinstance(module, Attention):
                zero(module.to_out[0])
        zero(self.unet.conv_out)
        if isinstance(self.condition_embed, RepresentationEmbedding):
            zero(self.condition_embed.proj)
            nn.init.normal_(self.condition_embed.null, std=0.02)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """The noise in x_t and the share of its variance. A conditional model without condition is unconditional.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, 1000), one number, or [B].
            representations: float [B, representation_dim]; None is the null representation for all.
            class_labels: int64 [B] in [0, num_classes); None is the null class for all.
            drop_condition: bool [B]; True replaces this sample's condition by the null one.

        Returns:
            float [B, 2C, S, S]: C channels of noise, about N(0, 1), and C of v, about in [−1, 1], which places the log
            variance between that of the posterior and β_t (arXiv 2102.09672, equation 15).

        Raises:
            UserError: images of another size, or a condition that this model does not take.
        """
        config = self.config
        check_sample(sample, config.in_channels, config.sample_size, "images")
        given = check_given(config, len(sample), representations, class_labels)
        vector = None
        if self.condition_embed is not None:
            vector = self.condition_embed(given, len(sample), drop_condition)
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        sample = sample.to(self.unet.conv_in.weight.dtype)
        return self.unet(sample, times, vector, return_dict=False)[0]
