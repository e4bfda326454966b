"""Autoencoders of diffusers as tokenizers: images ↔ continuous latents.

The modules themselves are components of a pipeline and are saved and loaded as diffusers' own classes; what this library
asks of a tokenizer beside that, `LatentCodec` adds.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.precision import Precision, in_precision

AUTOENCODERS: tuple[type[nn.Module], ...] = (AutoencoderKL, AutoencoderTiny, VQModel)


class LatentCodec:
    """An autoencoder with images in [0, 1] and latents of about unit variance.

    Latents are (z − shift) · scale with the `shift_factor` and `scaling_factor` of the autoencoder's config, or its
    `latents_mean` and `latents_std` of each channel where it has them; z is the mean of the posterior, not a draw from it,
    so that they can be cached. (The reference draws; the deviation of Stable Diffusion's is a few thousandths.) Those of
    a `VQModel` are not quantised before they are decoded (latent diffusion, arXiv 2112.10752, §3.1).

    Args:
        model: an `AutoencoderKL`, `AutoencoderTiny` or `VQModel`.

    Raises:
        UserError: a model of another kind, or one whose images are not RGB.
    """

    field = "latents"

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, AUTOENCODERS):
            names = " or ".join(cls.__name__ for cls in AUTOENCODERS)
            raise UserError(f"a {type(model).__name__} makes no latents; give the folder of an {names} of diffusers.")
        self.model: Any = model
        config: Any = model.config
        if config.get("lookup_from_codebook"):
            raise UserError("this VQModel decodes numbers of codes and no latents; take another autoencoder.")
        if (config.in_channels, config.out_channels) != (3, 3):
            raise UserError(
                f"the autoencoder takes images of {config.in_channels} channels and makes ones of {config.out_channels}, but "
                "RGB ones are needed; take another."
            )
        blocks = config.get("encoder_block_out_channels") or config.block_out_channels
        self.factor: int = 2 ** (len(blocks) - 1)
        """How much it shrinks images."""
        self.channels: int = config.get("vq_embed_dim") or config.latent_channels
        size = config.get("sample_size")
        size = size[0] if isinstance(size, list | tuple) and size else size
        self.image_size: int | None = size if isinstance(size, int) and size > 0 else None
        """Side in pixels that it was trained for, if its config says."""
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = [config.get("shift_factor") or 0.0] * self.channels, [1.0] * self.channels
        self.shift, self.scale = _numbers(mean), config.scaling_factor / _numbers(std)
        """Float32 [C, 1, 1] each."""
        fitting = {len(self.shift), len(self.scale)} == {self.channels} and bool(self.shift.isfinite().all())
        if not fitting or not bool((self.scale.isfinite() & (self.scale > 0)).all()):
            raise UserError(
                "the autoencoder's config shifts or scales latents by what is no number for each of their "
                f"{self.channels} channels, or not positive; fetch it again."
            )

    def encode(self, images: Tensor) -> Tensor:
        """Images float [B, 3, H, W] in [0, 1] → latents float32 [B, C, H / factor, W / factor].

        Raises:
            UserError: other images, or sides that are not multiples of `factor`.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                f"the autoencoder takes float images in [0, 1] of shape [batch, 3, height, width], but got {images.dtype} of "
                f"shape {list(images.shape)}."
            )
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor or not height or not width:
            raise UserError(
                f"images of {width}x{height} pixels cannot be encoded: both sides must be multiples of {self.factor}; resize "
                "or crop them first."
            )
        encoded = self.model.encode((2 * images - 1).to(self.model.dtype))
        z = (encoded.latents if "latents" in encoded else encoded.latent_dist.mode()).float()
        return (z - self.shift.to(z.device)) * self.scale.to(z.device)

    def storage(self, half: bool) -> Literal["float32", "float16"]:
        """The dtype that a cache stores latents in."""
        return "float16" if half else "float32"

    def decode(self, latents: Tensor, precision: Precision = "fp32") -> Tensor:
        """Latents [B, C, h, w] → images float32 [B, 3, h · factor, w · factor], clipped to [0, 1].

        Raises:
            UserError: latents of another number of channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels or not latents.is_floating_point():
            raise UserError(
                f"the autoencoder takes float latents [batch, {self.channels}, height, width], but got {latents.dtype} of "
                f"shape {list(latents.shape)}."
            )
        model = in_precision(self.model, precision)
        z = latents.float() / self.scale.to(latents.device) + self.shift.to(latents.device)
        if isinstance(self.model, VQModel):  # which code is nearest is decided in full precision
            codes = self.model.quantize(z.to(self.model.dtype))[0]
            images = model.decode(codes.to(model.dtype), force_not_quantize=True).sample
        else:
            images = model.decode(z.to(model.dtype)).sample
        return (images.float() + 1).mul(0.5).clamp(0, 1)


def _numbers(values: Any) -> Tensor:
    """Float32 [C, 1, 1] of a list; empty where it is none."""
    return torch.tensor(values if isinstance(values, list | tuple) else [], dtype=torch.float32).view(-1, 1, 1)
