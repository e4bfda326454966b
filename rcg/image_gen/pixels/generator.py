"""A generator of pixels as an `ImageGenerator`: its model and a flow-matching scheduler; there is no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.flow import check_scheduler
from rcg.core.pictures import from_signed
from rcg.core.precision import Precision, in_precision
from rcg.image_gen.pixels.model import PixelModel
from rcg.image_gen.pixels.sampling import DEFAULT_STEPS, sample_images
from rcg.image_gen.protocol import Conditioned, Request

GUIDANCE_INTERVAL = [0.1, 1.0]
"""The reference's (arXiv 2511.13720): guidance is left out while there is hardly anything but noise."""


class PixelGenerator(Conditioned):
    """See `rcg.image_gen.protocol.ImageGenerator`. Its codes are the images themselves, uint8 [B, 3, S, S].

    There is no published sampler to be exact to: `exact` changes nothing.

    Args:
        model: in evaluation mode.
        scheduler: a deterministic flow-matching one of diffusers, see `rcg.core.flow`.
        tokenizer: None.
        guiding_model: for autoguidance.
    """

    def __init__(
        self,
        model: PixelModel,
        scheduler: Any,
        tokenizer: nn.Module | None = None,
        guiding_model: PixelModel | None = None,
    ) -> None:
        self.model, self.scheduler, self.tokenizer, self.guiding_model = model, scheduler, tokenizer, guiding_model

    @property
    def decodable(self) -> bool:
        return True

    def check(self) -> None:
        """Raise `UserError` for a tokenizer, a scheduler of another kind, or images that are not RGB."""
        if self.tokenizer is not None:
            raise UserError(f"{type(self.model).__name__} makes pixels, not tokens; leave the tokenizer out.")
        if (channels := self.model.config.in_channels) != 3:
            raise UserError(f"the image generator makes images of {channels} channels, but a pipeline needs RGB.")
        check_scheduler(self.scheduler)

    def defaults(self) -> dict[str, Any]:
        return {
            "num_inference_steps": DEFAULT_STEPS,
            "temperature": None,
            "guidance_schedule": "constant",
            "guidance_interval": GUIDANCE_INTERVAL,
        }

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `UserError` for a temperature, or more steps than the scheduler knows noise levels."""
        if settings.get("temperature") is not None:
            raise UserError("this image generator has no temperature; leave it out.")
        steps, most = settings["num_inference_steps"], self.scheduler.config.num_train_timesteps
        if steps is not None and steps > most:
            raise UserError(f"num_inference_steps is {steps}, but the scheduler makes {most} at most.")

    def generate(self, request: Request) -> Tensor:
        config, callback = self.model.config, request.callback
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
            callback=None if callback is None else lambda step, images: callback(step, from_signed(images)),
        )
        return from_signed(images)

    def decode(self, codes: Tensor, precision: Precision = "fp32") -> Tensor:
        return codes.float() / 255
