"""A model that predicts noise or velocity, and a scheduler of diffusers, as an `ImageGenerator`; what differs a family fills in."""

from __future__ import annotations

from dataclasses import replace

from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from rcg.core.blocks import in_blocks, rows_of_images
from rcg.core.errors import UserError
from rcg.core.precision import Precision, in_precision
from rcg.image_gen.denoising import DenoisingGenerator
from rcg.image_gen.diffusion.sampling import (
    DEFAULT_STEPS,
    EXACT_STEPS,
    Drawing,
    check_scheduler,
    sample_exactly,
    sample_quickly,
)
from rcg.image_gen.prediction import PredictionType
from rcg.image_gen.protocol import Request
from rcg.image_gen.tokenizers.autoencoder import LatentCodec


def default_scheduler(prediction_type: PredictionType = "epsilon") -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv 2211.01095) over the noise schedule of DiT and ADM: β from 0.0001 to 0.02 in 1000 steps.

    Its steps are even in log(signal / noise). (Of Gaussian data with a standard deviation of 0.25, whose answer is known,
    25 such steps lose 1 % of the deviation, Karras' levels 4 %, steps even in time 13 %: `tests/image_gen/diffusion`.)
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction_type,
        use_lu_lambdas=True,
    )


class DiffusionGenerator(DenoisingGenerator):
    """See `rcg.image_gen.protocol.ImageGenerator`. `exact` is ancestral sampling with 250 steps, as in the reference.

    The model's config has `in_channels` and `sample_size`: codes are [B, C, S, S].

    Args:
        model: in evaluation mode.
        scheduler: of diffusers, which says what the model predicts; see `rcg.image_gen.diffusion.sampling.check_scheduler`.
        tokenizer: that decodes what the model makes, or None.
        guiding_model: for autoguidance.
    """

    field: str
    """The name of the codes in a batch and in a cache."""
    default_steps = DEFAULT_STEPS
    exact_steps: int | None = EXACT_STEPS
    exact_guided_channels: int | None = None
    """The first channels on which the reference's guidance acts; None: all."""
    clip = False
    """Whether data lie in [−1, 1]."""

    @property
    def block_rows(self) -> int:
        """About so many samples are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Codes [B, C, S, S] of images float [B, 3, H, W] in [0, 1]; `UserError` without the tokenizer that it takes."""
        raise NotImplementedError

    def data_of(self, codes: Tensor) -> Tensor:
        """What the model generates, float32 [B, C, S, S], of codes."""
        return codes.float()

    def codes_of(self, data: Tensor) -> Tensor:
        """The other way; values that codes cannot have are clipped."""
        return data

    def check(self) -> None:
        """Raise `UserError` for a scheduler of another kind, or one that takes for noise what is velocity, or the reverse."""
        check_scheduler(self.scheduler)
        predicted, taken = self.model.config.prediction_type, self.scheduler.config.prediction_type
        if predicted != taken:
            raise UserError(
                f"the image generator predicts {predicted}, but the scheduler is set to prediction_type {taken!r}; make one of "
                "the generator's own (SchedulerClass.from_config(pipe.image_scheduler.config))."
            )

    def generate(self, request: Request) -> Tensor:
        return self.codes_of(self.draw(self.drawing(request), replace(request, callback=request.shown(self.codes_of))))

    def drawing(self, request: Request) -> Drawing:
        """What a request is drawn with."""
        config, weaker = self.model.config, self.guiding_model
        return Drawing(
            model=in_precision(self.model, request.precision),
            guiding_model=None if weaker is None else in_precision(weaker, request.precision),
            scheduler=self.scheduler,
            shape=(config.in_channels, config.sample_size, config.sample_size),
            rows=self.block_rows,
            guided_channels=self.exact_guided_channels if request.exact else None,
            clip=self.clip,
        )

    def draw(self, drawing: Drawing, request: Request) -> Tensor:
        """Data, float32 [B, C, S, S]."""
        return sample_exactly(drawing, request) if request.exact else sample_quickly(drawing, request)


class LatentGenerator(DiffusionGenerator):
    """Of latents, float32 [B, C, S, S], which an autoencoder of diffusers decodes."""

    field = "latents"

    @property
    def decodable(self) -> bool:
        return self.tokenizer is not None

    def check(self) -> None:
        """Raise `UserError` if model, scheduler and autoencoder do not belong together."""
        super().check()
        if self.tokenizer is None:
            raise UserError("this image generator makes latents; give the autoencoder that it was trained with.")
        made, taken = self.model.config.in_channels, LatentCodec(self.tokenizer).channels
        if made != taken:
            raise UserError(
                f"the image generator makes latents of {made} channels, but the autoencoder takes {taken}; use the "
                "autoencoder that the generator was trained with."
            )

    def encode(self, images: Tensor) -> Tensor:
        """Latents [B, C, S, S] of images float [B, 3, H, W] in [0, 1]; `UserError` without an autoencoder."""
        if self.tokenizer is None:
            raise UserError("the data has no latents and there is no autoencoder to compute them; give a tokenizer.")
        return LatentCodec(self.tokenizer).encode(images)

    def decode(self, codes: Tensor, precision: Precision = "fp32") -> Tensor:
        if self.tokenizer is None:
            raise UserError("there is no autoencoder to decode latents with; give the one that made them.")
        codec = LatentCodec(self.tokenizer)
        rows = rows_of_images(codes[0, 0].numel() * codec.factor**2)
        return in_blocks(lambda latents: codec.decode(latents, precision), rows, codes)
