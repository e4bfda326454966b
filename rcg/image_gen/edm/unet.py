"""A U-Net on pixels with EDM's preconditioning, which predicts the clean image from a noisy one.

"Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364). EDM counts noise as y = image +
σ · noise; here, as in all families on pixels, x = t · image + (1 − t) · noise, so that y = x / t and σ = (1 − t) / t. The
network itself is diffusers' `UNet2DModel`; its objective is in `rcg.image_gen.edm.objective`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from rcg.core.component import Settled
from rcg.core.errors import UserError
from rcg.core.schema import Classes, CountOrZero, Depth, Range, ShareBelowOne, Size, check_arguments
from rcg.image_gen.conditions import Condition, check_given, condition_embedding
from rcg.image_gen.denoising import check_sample
from rcg.image_gen.unets import block_rows, make_quick, norm_groups, zero

SIGMA_DATA = 0.5
"""Standard deviation of the data, as EDM takes it for images in [−1, 1]."""
LEAST_TIME = 1e-4
"""t of EDM's largest σ, about; the network's input hardly changes below."""
NOISE_SCALE = 250.0
"""ln σ is embedded this much enlarged: EDM's c_noise = ln σ / 4 in thousandths, as diffusers' embedding expects times."""


class EDMUNet(Settled, ModelMixin, ConfigMixin):
    """Noisy image x_t = t · image + (1 − t) · noise, at time t (+ condition) → the clean image.

    Images are in [−1, 1]; t goes from 0 (noise) to 1 (the image).

    Args:
        image_size: S, side of the images in pixels, a multiple of 2 to the power of the number of halvings.
        in_channels: of the images; a pipeline needs 3.
        channels: of each resolution, from S down, multiples of 32 (of the group norms); EDM's CIFAR-10 model has 256
            throughout.
        layers: residual blocks of each resolution (EDM: 4).
        attention_size: side of the maps that get self-attention (EDM: 16), beside those in the middle; one that no resolution
            has gives none, as 0 does.
        dropout: in the residual blocks while training, in [0, 1).
        condition, representation_dim, num_classes, condition_dropout, label_counts: see
            `rcg.image_gen.pixel_dit.transformer.PixelDiT`.

    Raises:
        UserError: a size cannot be used.
    """

    keep_in_fp32 = ("condition_embed",)
    """Part of `rcg.core.precision`'s bf16 copies that stays fp32."""

    @register_to_config
    def __init__(
        self,
        image_size: Size = 32,
        in_channels: Size = 3,
        channels: tuple[Size, ...] = (128, 128, 128),
        layers: Depth = 2,
        attention_size: Annotated[int, Range(0, 65536)] = 16,
        dropout: ShareBelowOne = 0.1,
        condition: Condition = "representation",
        representation_dim: Size | None = None,
        num_classes: Classes | None = None,
        condition_dropout: ShareBelowOne = 0.1,
        label_counts: list[CountOrZero] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(self)
        if not channels:
            raise UserError("channels is empty, but there must be at least one resolution; give its width.")
        halvings = len(channels) - 1
        if image_size % 2**halvings:
            raise UserError(
                f"image_size is {image_size}, which cannot be halved {halvings} times; choose another size or fewer channels."
            )
        if wrong := [c for c in channels if c % 32]:
            raise UserError(f"{wrong[0]} channels were asked for, but each resolution needs a multiple of 32.")
        sides = [image_size // 2**i for i in range(len(channels))]
        attended = [side == attention_size for side in sides]
        width = 4 * channels[0]
        sizes = (representation_dim, num_classes)
        self.condition_embed = condition_embedding(condition, *sizes, width, has_null=condition_dropout > 0)
        self.unet = UNet2DModel(
            sample_size=image_size,
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
            attention_head_dim=min(64, *channels),
            norm_num_groups=norm_groups(channels),
            dropout=dropout,
            class_embed_type=None if self.condition_embed is None else "identity",
        )
        make_quick(self.unet)
        zero(self.unet.conv_out)

    @property
    def block_rows(self) -> int:
        """Images that are evaluated together on a CPU."""
        return block_rows(self.config.image_size, self.config.channels[0])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """The clean image, D = c_skip · y + c_out · F(c_in · y; c_noise) (equation 7), written in x and t.

        Args:
            sample: float [B, C, S, S], x_t.
            timestep: t in [0, 1] (1: no noise), one number, or [B].
            representations, class_labels, drop_condition: see `PixelDiT`.

        Returns:
            float [B, C, S, S], about in [−1, 1].

        Raises:
            UserError: images of another size, or a condition that this model does not take.
        """
        config = self.config
        check_sample(sample, config.in_channels, config.image_size, "images")
        t = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        t = t.clamp(LEAST_TIME, 1 - LEAST_TIME)
        given = check_given(config, len(sample), representations, class_labels)
        size = ((1 - t).square() + (SIGMA_DATA * t).square())[:, None, None, None]
        time = t[:, None, None, None]
        dtype = self.unet.conv_in.weight.dtype
        noisy, vector = (sample * size.rsqrt()).to(dtype), None
        if self.condition_embed is not None:
            vector = self.condition_embed(given, len(sample), drop_condition).to(dtype)
        change = self.unet(noisy, NOISE_SCALE * torch.log((1 - t) / t), class_labels=vector, return_dict=False)[0]
        return SIGMA_DATA**2 * time / size * sample + (1 - time) * SIGMA_DATA * size.rsqrt() * change.float()
