"""A generator of pixels as an `ImageGenerator`: its model and a flow-matching scheduler; there is no tokenizer."""

from __future__ import annotations

from torch import Tensor

from rcg.core.flow import check_scheduler
from rcg.core.pictures import from_signed
from rcg.core.precision import in_precision
from rcg.image_gen.denoising import DenoisingGenerator, PixelCodes
from rcg.image_gen.pixels.sampling import DEFAULT_STEPS, sample_images
from rcg.image_gen.protocol import Request


class PixelGenerator(PixelCodes, DenoisingGenerator):
    """See `rcg.image_gen.protocol.ImageGenerator`. Its codes are the images themselves, uint8 [B, 3, S, S].

    There is no published sampler to be exact to: `exact` changes nothing.

    Args:
        model: in evaluation mode.
        scheduler: a deterministic flow-matching one of diffusers, see `rcg.core.flow`.
        tokenizer: None.
        guiding_model: for autoguidance.
    """

    default_steps = DEFAULT_STEPS
    guidance_interval = (0.1, 1.0)
    """The reference's (arXiv 2511.13720): guidance is left out while there is hardly anything but noise."""

    def check(self) -> None:
        """Raise `UserError` for a tokenizer, a scheduler of another kind, or images that are not RGB."""
        self.check_pixels()
        check_scheduler(self.scheduler)

    def generate(self, request: Request) -> Tensor:
        config = self.model.config
        shape = (len(request.noise), config.in_channels, config.image_size, config.image_size)
        noise = request.noise.normal(0, config.in_channels * config.image_size**2).view(shape)
        images = sample_images(
            in_precision(self.model, request.precision),
            self.scheduler,
            noise,
            representations=request.representations,
            class_labels=request.class_labels,
            num_inference_steps=request.num_inference_steps,
            guidance=request.guidance,
            guiding_model=None if self.guiding_model is None else in_precision(self.guiding_model, request.precision),
            callback=request.shown(from_signed),
        )
        return from_signed(images)
