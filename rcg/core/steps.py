"""How many steps a diffusers scheduler can make, checked before it makes wrong ones. A leaf: anyone may import it."""

from __future__ import annotations

import math
from typing import Any

from rcg.core.errors import UserError, first_line

MAX_SIGNAL = 0.01  # ᾱ at the first step: above, starting from pure noise is starting in the wrong place


def set_steps(scheduler: Any, steps: int, *, distinct: bool = True) -> None:
    """`scheduler.set_timesteps(steps)`, on the CPU, but a schedule that would silently be a wrong one is refused.

    diffusers' DDIM and DDPM jump by `T // steps`, and "leading" spacing starts at about `steps · (T // steps)`: where
    that is far from T, sampling would begin with pure noise in the middle of the noise schedule.

    Args:
        scheduler: of the variance-preserving kind.
        steps: num_inference_steps.
        distinct: refuse steps so many that some timesteps, rounded to whole numbers, are equal.

    Raises:
        UserError: with the way out.
    """
    name = type(scheduler).__name__
    total = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= total:
        raise UserError(f"{steps} steps were asked for, but their number must lie between 1 and {total}.")
    jumps_evenly = not hasattr(scheduler, "sigmas")  # DDIM, DDPM, …: no table of noise levels, only t - T // steps
    if jumps_evenly and total % steps:
        raise UserError(
            f"{name} cannot make {steps} steps, because they do not divide {total}; use {_nearest_divisors(total, steps)}, "
            "or, unless sampling is exact, a solver such as DPMSolverMultistepScheduler."
        )
    try:
        scheduler.set_timesteps(steps, device="cpu")
    except (ValueError, NotImplementedError) as e:
        raise UserError(f"{name} cannot make {steps} steps ({first_line(e)}); choose another number.") from None
    first, last = float(scheduler.timesteps.max()), float(scheduler.timesteps.min())
    if not math.isfinite(first):
        raise UserError(f"{name} cannot make {steps} steps, as it finds no times for them; choose another number.")
    if first > total - 1 or last < 0:
        raise UserError(f"{name} with {steps} steps leaves its schedule of {total}; use fewer steps.")
    if float(scheduler.alphas_cumprod[int(first)]) > MAX_SIGNAL:
        raise UserError(
            f"{name} with {steps} steps would begin at step {first:.0f} of {total}, where noise is not pure; choose "
            "another number of steps or timestep_spacing='trailing'."
        )
    if distinct and len(scheduler.timesteps.unique()) < steps:
        raise UserError(f"{name} would visit some of its {steps} timesteps twice; use fewer steps.")


def _nearest_divisors(total: int, steps: int) -> str:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    below, above = max(d for d in divisors if d < steps), min(d for d in divisors if d > steps)
    return f"{below} or {above}"
