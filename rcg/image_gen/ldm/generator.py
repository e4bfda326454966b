"""LDM as an `ImageGenerator`: the U-Net, a diffusers scheduler and an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from rcg.image_gen.diffusion.generator import LatentGenerator
from rcg.image_gen.diffusion.sampling import Drawing, sample_quickly
from rcg.image_gen.prediction import PredictionType
from rcg.image_gen.protocol import Request
from rcg.image_gen.unets import block_rows

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
}


def default_scheduler(prediction_type: PredictionType = "epsilon") -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv 2211.01095) over LDM's noise schedule: √β from √0.0015 to √0.0195 in 1000 steps.

    Its steps are even in log(signal / noise), see `rcg.image_gen.diffusion.generator.default_scheduler`.
    """
    return DPMSolverMultistepScheduler(**BETAS, prediction_type=prediction_type, use_lu_lambdas=True)


def paper_scheduler(schedule: Mapping[str, Any] = BETAS) -> DDIMScheduler:
    """The reference's sampler: DDIM at steps 1, 1 + c, …, the last of which goes to ᾱ₀.

    Args:
        schedule: config of a scheduler, of which noise schedule and prediction are taken.
    """
    return DDIMScheduler(
        **{name: schedule[name] for name in BETAS},
        prediction_type=schedule.get("prediction_type", "epsilon"),
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


class LDMGenerator(LatentGenerator):
    """See `LatentGenerator`. `exact` is the reference's DDIM with 200 steps at eta 1."""

    exact_steps: int | None = 200

    @property
    def block_rows(self) -> int:
        config = self.model.config
        return block_rows(config.sample_size, 2 * config.base_channels)  # the finest level has attention, too

    def draw(self, drawing: Drawing, request: Request) -> Tensor:
        if request.exact:
            drawing = replace(drawing, scheduler=paper_scheduler(self.scheduler.config), eta=1.0)
        return sample_quickly(drawing, request)
