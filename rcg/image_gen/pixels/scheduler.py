"""Steps along a flow that are spread over the ratio of noise to signal, as a diffusers scheduler.

Small images need noise levels at which nothing but their mean colour is left, and ones at which hardly any noise is. Steps
that are spread evenly over t have neither: the first of twenty goes from no signal to a twentieth.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.schema import Positive, Size, check_arguments

FEW = 6
"""Steps from which on they are placed by the ratio of noise to signal."""


class KarrasFlowScheduler(SchedulerMixin, ConfigMixin):
    """DPM-Solver++ 2M (arXiv 2211.01095) along x = (1 − σ) · data + σ · noise, at EDM's noise levels.

    The first evaluation is at σ = 1; the others are at ratios s = σ / (1 − σ) from `max_ratio` to `min_ratio`, with even
    steps of s^(1/ρ) (Karras et al., arXiv 2206.00364, equation 5); the last step ends at σ = 0. One evaluation a step. Fewer
    than `FEW` steps are spread evenly over σ: those levels would all lie at the two ends, and nothing between.

    Args:
        max_ratio, min_ratio: of noise to signal, for data in [−1, 1]; max_ratio is the larger one.
        rho: ρ; the larger, the more of the steps go to low noise.
        num_train_timesteps: what `timesteps` are multiplied by, and the most steps.

    Raises:
        UserError: a number that cannot be used.
    """

    order = 1
    integrates_flow = True
    """See `rcg.core.flow.check_scheduler`."""

    @register_to_config
    def __init__(
        self,
        max_ratio: Positive = 80.0,
        min_ratio: Positive = 0.02,
        rho: Positive = 7.0,
        num_train_timesteps: Size = 1000,
    ) -> None:
        check_arguments(self)
        if min_ratio >= max_ratio:
            raise UserError(f"min_ratio is {min_ratio}, but it must be below max_ratio, {max_ratio}.")
        self.set_timesteps(20)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Fix the number of steps: `sigmas` float32 [steps + 1] falls from 1 to 0 on the CPU, `timesteps` are those but the last,
        times `num_train_timesteps`."""
        config = self.config
        if num_inference_steps < FEW:
            sigmas = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        else:
            first, last = (ratio ** (1 / config.rho) for ratio in (config.max_ratio, config.min_ratio))
            ratios = torch.linspace(first, last, num_inference_steps - 1, dtype=torch.float64) ** config.rho
            sigmas = torch.cat([torch.ones(1), ratios / (1 + ratios), torch.zeros(1)])
        self.sigmas = sigmas.float()
        self.timesteps = (sigmas[:-1] * config.num_train_timesteps).to(device, torch.float32)
        self.step_index = 0
        self._clean: Tensor | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Which step comes next."""
        self.step_index, self._clean = begin_index, None

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next sample.

        Args:
            model_output: dx/dσ at the sample, of its shape.
            timestep: not looked at; steps are taken in order.
            sample: float, x.
            return_dict: False returns a tuple.
        """
        before, here, after = (float(self.sigmas[max(self.step_index + i, 0)]) for i in (-1, 0, 1))
        clean = sample - here * model_output
        direction = clean
        if self._clean is not None and before < 1 and after > 0:
            # λ = log((1 − σ) / σ); second order in it, but for the first steps, which come from −∞, and the last, to ∞.
            at = torch.tensor([before, here, after], dtype=torch.float64)
            last, now = (((1 - at) / at).log()).diff().tolist()
            direction = torch.lerp(self._clean, clean, 1 + now / (2 * last))
        self._clean = clean
        self.step_index += 1
        scale = after / here
        previous = scale * sample + ((1 - after) - scale * (1 - here)) * direction
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)
