"""Integrating a flow with diffusers' schedulers, for every model that is trained by flow matching. A leaf.

diffusers counts noise, σ = 1 − t: x = (1 − σ) · data + σ · noise, and a scheduler integrates the velocity dx/dσ = noise −
data. That of predicted data x̂ is (x − x̂) / σ.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from rcg.core.errors import UserError, first_line


def flow_scheduler(shift: float = 1.0) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M (arXiv 2211.01095) over the straight path: one evaluation a step.

    Args:
        shift: of the noise levels, σ → shift · σ / (1 + (shift − 1) · σ); above 1 more of the steps go to high noise.
    """
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
        lower_order_final=True,
    )


GOOD = (
    "take FlowMatchHeunDiscreteScheduler() or "
    "DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type='flow_prediction')"
)


def check_scheduler(scheduler: Any) -> None:
    """Raise `UserError` for a scheduler that does not integrate a velocity from noise to data, or adds noise on its way."""
    _check_config(scheduler)
    FlowSolver(scheduler, min(2, scheduler.config.num_train_timesteps), torch.device("cpu"))


def _check_config(scheduler: Any) -> None:
    name, config = type(scheduler).__name__, scheduler.config
    of_flow = (
        getattr(scheduler, "integrates_flow", False)
        or name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
        or (config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction")
    )
    if not of_flow:
        raise UserError(f"{name} as it is set does not integrate a flow; {GOOD}.")
    if config.get("stochastic_sampling") or str(config.get("algorithm_type")).startswith("sde"):
        raise UserError(f"{name} as it is set adds noise at each step; take a deterministic one for this generator.")
    if config.get("use_dynamic_shifting"):
        raise UserError(
            f"{name} shifts its steps by the size of what it makes, which has one size here; use a fixed shift."
        )


class FlowSolver:
    """A private copy of a scheduler, set to a number of steps.

    Args:
        scheduler: see `check_scheduler`; it is left untouched.
        steps: num_inference_steps; the noise levels of unshifted ones are 1 (0.999 of DPM-Solvers), 1 − 1/steps, …, 1/steps, 0.
        device: of the samples.

    Raises:
        UserError: a scheduler that does not fit, or a number of steps that it cannot make.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        _check_config(scheduler)
        name, self.scheduler = type(scheduler).__name__, type(scheduler).from_config(scheduler.config)
        if not 1 <= steps <= self.scheduler.config.num_train_timesteps:
            most = self.scheduler.config.num_train_timesteps
            raise UserError(f"{steps} steps were asked for, but their number must lie between 1 and {most}.")
        if "sigma_min" in vars(self.scheduler):  # Euler, Heun: theirs ends at 1/1000, where a velocity is all rounding
            self.scheduler.sigma_min, self.scheduler.sigma_max = 1 / steps, 1.0
        try:
            self.scheduler.set_timesteps(steps, device=device)
        except (ValueError, NotImplementedError) as e:
            raise UserError(f"{name} cannot make {steps} steps ({first_line(e)}); choose another.") from None
        self.noise_levels: list[float] = self.scheduler.sigmas.tolist()
        """σ in (0, 1] of each evaluation, and 0 at the end."""
        first, last = self.noise_levels[0], self.noise_levels[-1]
        if last > 0 or first > 1 + 1e-3:
            raise UserError(
                f"{name} as it is set goes from a noise level of {first:.3g} to {last:.3g} in {steps} steps, but a flow goes "
                f"from 1 to 0, where no noise is left; {GOOD}."
            )
        self.scheduler.set_begin_index(0)  # it would look for the first timestep among rounded ones

    def __len__(self) -> int:
        """Evaluations of the model."""
        return len(self.scheduler.timesteps)

    def step(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        """The next x after evaluation i, which predicted dx/dσ at x."""
        return self.scheduler.step(velocity, self.scheduler.timesteps[i], x, return_dict=False)[0]

    def ended_step(self) -> bool:
        """Whether the last evaluation ended a step (one of Heun's takes two)."""
        last = self.scheduler.step_index == len(self)
        return last or bool(getattr(self.scheduler, "state_in_first_order", True))
