"""From noise and condition to images: the loop around a model that predicts the image, and a flow-matching scheduler.

diffusers counts noise, σ = 1 − t: x = (1 − σ) · image + σ · noise, and a scheduler integrates the velocity dx/dσ = noise −
image. That of a predicted image x̂ is (x − x̂) / σ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.image_gen.conditions import NO_GUIDANCE, Guidance, check_condition
from rcg.image_gen.pixels.model import PixelModel

BLOCK_TOKENS = 1024
"""About so many tokens are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""
DEFAULT_STEPS = 20


def default_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv 2211.01095) over the straight path: one evaluation a step."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, lower_order_final=True
    )


def check_scheduler(scheduler: Any) -> None:
    """Raise `UserError` for a scheduler that does not integrate a velocity, or adds noise on its way."""
    name, config = type(scheduler).__name__, scheduler.config
    of_flow = name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler") or (
        config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    )
    if not of_flow:
        raise UserError(
            f"{name} as it is set does not integrate a flow; take FlowMatchHeunDiscreteScheduler, or one such as "
            "DPMSolverMultistepScheduler with use_flow_sigmas=True and prediction_type='flow_prediction'."
        )
    if config.get("stochastic_sampling") or str(config.get("algorithm_type")).startswith("sde"):
        raise UserError(f"{name} as it is set adds noise at each step; take a deterministic one for this generator.")
    if config.get("use_dynamic_shifting"):
        raise UserError(
            f"{name} shifts its steps by the size of the image, which has one size here; use a fixed shift."
        )


class FlowSolver:
    """A private copy of a scheduler, set to a number of steps.

    Args:
        scheduler: see `check_scheduler`; it is left untouched.
        steps: num_inference_steps; the noise levels of unshifted ones are 1, 1 − 1/steps, …, 1/steps, 0.
        device: of the samples.

    Raises:
        UserError: a scheduler that does not fit, or a number of steps that it cannot make.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        check_scheduler(scheduler)
        self.scheduler = type(scheduler).from_config(scheduler.config)
        if not 1 <= steps <= self.scheduler.config.num_train_timesteps:
            most = self.scheduler.config.num_train_timesteps
            raise UserError(f"num_inference_steps is {steps}, but it must lie between 1 and {most}.")
        if hasattr(self.scheduler, "sigma_min"):  # Euler, Heun: theirs ends at 1/1000, where a velocity is all rounding
            self.scheduler.sigma_min, self.scheduler.sigma_max = 1 / steps, 1.0
        try:
            self.scheduler.set_timesteps(steps, device=device)
        except (ValueError, NotImplementedError) as e:
            name = type(scheduler).__name__
            raise UserError(f"{name} cannot make {steps} steps ({str(e).splitlines()[0]}); choose another.") from None
        self.scheduler.set_begin_index(0)  # it would look for the first timestep among rounded ones
        self.noise_levels: list[float] = self.scheduler.sigmas.tolist()
        """σ in (0, 1] of each evaluation, and the 0 at the end."""

    def __len__(self) -> int:
        """Evaluations of the model."""
        return len(self.scheduler.timesteps)

    def step(self, i: int, clean: Tensor, x: Tensor) -> Tensor:
        """The next x after evaluation i, which predicted the image `clean` from x."""
        velocity = (x - clean) / self.noise_levels[i]
        return self.scheduler.step(velocity, self.scheduler.timesteps[i], x, return_dict=False)[0]

    def ended_step(self) -> bool:
        """Whether the last evaluation ended a step (one of Heun's takes two)."""
        last = self.scheduler.step_index == len(self)
        return last or bool(getattr(self.scheduler, "state_in_first_order", True))


@torch.no_grad()
def sample_images(
    model: PixelModel,
    scheduler: Any,
    noise: Tensor,
    *,
    representations: Tensor | None = None,
    class_labels: Tensor | None = None,
    num_inference_steps: int = DEFAULT_STEPS,
    guidance: Guidance = NO_GUIDANCE,
    guiding_model: PixelModel | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw images from noise; image i depends on row i of the arguments alone.

    Guidance is the same for images as for velocities; its progress is t.

    Args:
        model: in evaluation mode, or dropout will act.
        scheduler: see `check_scheduler`.
        noise: float32 [B, C, S, S], standard normal.
        representations: float [B, D] on any device, for a representation-conditional model.
        class_labels: int64 [B] in [0, num_classes), for a class-conditional model.
        num_inference_steps: at least 1.
        guidance: by the null condition, or by the guiding model; where it acts, two models are evaluated.
        guiding_model: a weaker model for images of the same size, in evaluation mode.
        callback: called as `callback(i, images)` after step i (from 0) with the images as predicted by then.

    Returns:
        float32 [B, C, S, S], about in [−1, 1], on the model's device.

    Raises:
        UserError: a condition is missing or does not fit, guidance is asked of a model that cannot be guided, the number
            of steps cannot be used, or the result is not finite.
    """
    device = model.device
    guided = check_condition(model, representations, class_labels, guidance, guiding_model)
    representations = None if representations is None else representations.to(device)
    class_labels = None if class_labels is None else class_labels.to(device)
    solver = FlowSolver(scheduler, num_inference_steps, device)
    rows = BLOCK_TOKENS // model.num_tokens
    x, done = noise.to(device), 0
    for i in range(len(solver)):
        t = 1 - solver.noise_levels[i]
        scale = guidance.at(t)
        clean = in_blocks(_predictor(model, t), rows, x, representations, class_labels)
        if guided and scale != 1.0:
            if guiding_model is None:
                weaker = in_blocks(_predictor(model, t), rows, x)
            else:
                weaker = in_blocks(_predictor(guiding_model, t), rows, x, representations, class_labels)
            clean = torch.lerp(weaker, clean, scale)
        x = solver.step(i, clean, x)
        if callback is not None and solver.ended_step():
            callback(done, clean)
            done += 1
    if not torch.isfinite(x).all():
        raise UserError("the generator's images are not finite; its weights are damaged or the precision too low.")
    return x


def _predictor(model: PixelModel, t: float) -> Callable[..., Tensor]:
    """The images that a model predicts at time t from x and condition, float32."""
    return lambda x, representations=None, class_labels=None: model(x, t, representations, class_labels).float()
