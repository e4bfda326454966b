"""ADM as an `ImageGenerator`: the U-Net and a diffusers scheduler; pixels need no tokenizer."""

from __future__ import annotations

from torch import Tensor

from rcg.core.pictures import from_signed, to_signed, to_uint8
from rcg.image_gen.denoising import PixelCodes
from rcg.image_gen.diffusion.generator import DiffusionGenerator
from rcg.image_gen.unets import block_rows


class ADMGenerator(PixelCodes, DiffusionGenerator):
    """See `DiffusionGenerator`. Its codes are the images themselves, uint8 [B, 3, S, S].

    Predicted images are clipped to [−1, 1] at every step, as in the reference; `exact` is its ancestral sampling.

    Args:
        model: an `ADMUNet` in evaluation mode.
        scheduler: see `rcg.image_gen.diffusion.sampling`.
        tokenizer: None.
        guiding_model: for autoguidance.
    """

    field = "images"
    clip = True

    @property
    def block_rows(self) -> int:
        return block_rows(self.model.config.sample_size, self.model.config.base_channels)

    def check(self) -> None:
        """Raise `UserError` for a tokenizer, a scheduler of another kind, or images that are not RGB."""
        super().check()
        self.check_pixels()

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of images float [B, 3, S, S] in [0, 1]: pixels are their own codes."""
        return to_uint8(images)

    def data_of(self, codes: Tensor) -> Tensor:
        return to_signed(codes)

    def codes_of(self, data: Tensor) -> Tensor:
        return from_signed(data)
