"""Drawing representations: noise → RepresentationMLP + any diffusers scheduler → representations [B, D]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.utils import torch_utils
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.rdm.classes import guided
from rcg.rdm.protocol import ROW_BLOCK
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.schedule import FAST_STEPS, PAPER_STEPS, fast_scheduler, paper_scheduler
from rcg.rdm.solver import Generators, Solver

__all__ = ["default_steps", "fast_scheduler", "paper_scheduler", "sample_representations"]


def default_steps(scheduler: Any) -> int:
    """Steps when none are given: the paper's 250 for DDIM and DDPM, otherwise the few that a modern solver needs."""
    return PAPER_STEPS if type(scheduler).__name__ in ("DDIMScheduler", "DDPMScheduler") else FAST_STEPS


@torch.no_grad()
def sample_representations(
    rdm: RepresentationMLP,
    scheduler: Any,
    num_samples: int,
    *,
    num_inference_steps: int | None = None,
    class_labels: Tensor | Sequence[int] | int | None = None,
    guidance_scale: float = 1.0,
    eta: float = 1.0,
    generator: Generators = None,
    row_block: int | None = ROW_BLOCK,
) -> Tensor:
    """Draw representations (RCG section 3.2).

    With a `Noise` or a list of generators sample *i* depends on its own alone. On a CPU in fp32 it is then the same, bit for
    bit, whatever `num_samples` is, because the denoiser always sees `row_block` rows at a time
    (`rcg.core.blocks.in_blocks`).

    Args:
        rdm: the denoiser.
        scheduler: any diffusers scheduler over the RDM's own betas (see `rcg.rdm.schedule`) whose `prediction_type` is
            what the RDM predicts. A copy that does not clip is used (`rcg.rdm.solver`).
        num_samples: B.
        num_inference_steps: denoising steps; `default_steps(scheduler)` if None.
        class_labels: one label, or [B]; for class-conditional models. None draws from the null class.
        guidance_scale: g; 1.0 is off, above 1 strengthens the class (only models with a null class).
        eta: noise of DDIM, 0 (none) to 1 (the paper's); other schedulers have no such setting and ignore it.
        generator: a `Noise` (the first draw is x_T, one more for each step), one generator, or one for each sample.
        row_block: rows the denoiser evaluates together on a CPU, a power of two; None takes the batch as it is (quicker for
            large batches on a CPU, but the last bits then depend on the batch size).

    Returns:
        float32 [B, D] on the RDM's device.

    Raises:
        UserError: a step count that the scheduler cannot make, labels or guidance that the model cannot use, a
            scheduler for another prediction.
    """
    if num_samples < 1:
        raise UserError(f"{num_samples} representations were asked for; ask for at least 1.")
    if isinstance(generator, list | Noise) and len(generator) != num_samples:
        raise UserError(f"{len(generator)} generators were given for {num_samples} samples; give one for each.")
    device = rdm.device

    def predict(t: Tensor, x: Tensor, labels: Tensor | None) -> Tensor:
        return rdm(x, t, labels, return_dict=False)[0].float()

    # Noise, v and x0 are affine in each other with coefficients that depend on (x_t, t) alone: ε = (x_t - √ᾱ·x0) / √(1-ᾱ).
    # The weights of guidance add up to 1, so that guiding x0 gives
    #   (x_t - √ᾱ·(u0 + g(c0 - u0))) / √(1-ᾱ)  =  ε_u + g·(ε_c - ε_u),
    # exactly what guiding ε would: the x_t terms are the same in both and enter with weight (1-g) + g = 1.
    predicted = guided(rdm, predict, class_labels, num_samples, guidance_scale, row_block)
    steps = default_steps(scheduler) if num_inference_steps is None else num_inference_steps
    solver = Solver(scheduler, steps, eta, generator)

    x = solver.start(randn_tensor((num_samples, rdm.config.representation_dim), generator=generator, device=device))
    for t, shown in zip(solver.timesteps, solver.timesteps.to(device), strict=True):
        model_input = solver.model_input(x, t)
        x = solver.step(predicted(shown, model_input), t, x, model_input)
    if not torch.isfinite(x).all():
        raise UserError(
            f"{solver.name} with {steps} steps produced values that are not finite; use more steps or another scheduler "
            "(while training, lower --lr)."
        )
    return x


def randn_tensor(shape: tuple[int, int], generator: Generators, device: torch.device) -> Tensor:
    """Standard normal [B, D] on the device: the first draw."""
    if isinstance(generator, Noise):
        return generator.normal(0, shape[1]).to(device)
    return cast(Tensor, torch_utils.randn_tensor(shape, generator=generator, device=device))
