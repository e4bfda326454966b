"""`RepresentationMLP` and a diffusers scheduler as a `RepresentationGenerator`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.precision import in_precision
from rcg.rdm.protocol import ROW_BLOCK, Request
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.sampling import sample_representations
from rcg.rdm.schedule import PAPER_STEPS, PREDICTION_TYPES, alphas_cumprod, paper_scheduler


class DDPMGenerator:
    """See `rcg.rdm.protocol.RepresentationGenerator`. `exact` is the paper's DDIM at eta 1, in fp32.

    Args:
        model: in evaluation mode.
        scheduler: any of diffusers over the RDM's own betas, see `rcg.rdm.sampling`.
    """

    def __init__(self, model: RepresentationMLP, scheduler: Any) -> None:
        self.model, self.scheduler = model, scheduler

    @property
    def exact_steps(self) -> int | None:
        return PAPER_STEPS

    def check(self) -> None:
        """Raise `UserError` for a scheduler with another path from noise to data (one of flows, or without betas), or other betas."""
        config, name = self.scheduler.config, type(self.scheduler).__name__
        theirs, ours = getattr(self.scheduler, "alphas_cumprod", None), alphas_cumprod()
        if theirs is None or config.get("use_flow_sigmas") or config.get("prediction_type") not in PREDICTION_TYPES:
            raise UserError(
                f"{name} as it is set does not follow the noise schedule of this RDM; take the scheduler that it was "
                "saved with, or one of diffusers' with betas, such as DPMSolverMultistepScheduler."
            )
        if theirs.shape != ours.shape or not torch.allclose(theirs.cpu().double(), ours, atol=1e-4):
            raise UserError(
                f"{name} as it is set has other betas than this RDM was trained with; make it from the scheduler that the RDM "
                f"was saved with: {name}.from_config(pipe.rdm_scheduler.config)."
            )

    def draw(self, request: Request) -> Tensor:
        exact = request.exact
        return sample_representations(
            in_precision(self.model, "fp32" if exact else request.precision),
            paper_scheduler(self.scheduler.config.prediction_type) if exact else self.scheduler,
            len(request.noise),
            num_inference_steps=request.num_inference_steps,
            class_labels=request.class_labels,
            guidance_scale=request.guidance_scale,
            generator=request.noise,
            row_block=ROW_BLOCK if request.blocks else None,
        )
