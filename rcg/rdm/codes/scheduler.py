"""How many of the codes are drawn at each step, coarse to fine: a few at first, many at last."""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from rcg.core.categorical import draw_categories
from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.core.schema import Size, check_arguments


class CodeScheduler(SchedulerMixin, ConfigMixin):
    """Codes are drawn from the first, coarsest one on, as many at a time as MaskGIT's cosine says (arXiv 2202.04200, §3.2).

    Each code is drawn from the model's distribution given those of the steps before. With as many steps as codes that is the
    model's own distribution; with fewer, what the codes of one step would have had to know of each other is lost. MaskGIT
    keeps the most probable of what it draws, which makes samples alike; nothing like that is done here.

    Args:
        num_inference_steps: evaluations of the model, unless a call says otherwise.
    """

    @register_to_config
    def __init__(self, num_inference_steps: Size = 8) -> None:
        check_arguments(self)
        self.timesteps: Tensor = torch.empty(0, dtype=torch.int64)
        self.set_timesteps(num_inference_steps)

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Fix the number of steps T (None: the config's); `timesteps` is then 0 … T-1.

        Raises:
            UserError: T is not a whole number above 0.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"num_inference_steps is {steps!r}, but it must be a whole number above 0.")
        self.timesteps = torch.arange(steps, device=device)

    def masked_counts(self, positions: int) -> list[int]:
        """How many of `positions` are masked before each of the T steps, and the 0 after the last; it falls at every step.

        Raises:
            UserError: more steps than positions.
        """
        steps = len(self.timesteps)
        if steps > positions:
            raise UserError(
                f"{steps} steps were asked for, but a representation has only {positions} codes and each step settles at least "
                f"one; use {positions} steps or fewer."
            )
        counts = [positions]
        for i in range(1, steps):
            stay = math.floor(positions * math.cos(math.pi / 2 * i / steps))
            counts.append(max(steps - i, min(counts[-1] - 1, stay)))
        return [*counts, 0]

    def step(self, logits: Tensor, timestep: int, codes: Tensor, noise: Noise) -> Tensor:
        """Draw the codes whose turn it is.

        Args:
            logits: [B, N, K] of all positions.
            timestep: i in [0, T).
            codes: int64 [B, N], as drawn so far.
            noise: of the B samples (draw i).

        Returns:
            codes int64 [B, N] with more of them drawn.
        """
        positions = codes.shape[1]
        first, end = (positions - count for count in self.masked_counts(positions)[timestep : timestep + 2])
        codes = codes.clone()
        codes[:, first:end], _ = draw_categories(logits[:, first:end], noise.uniform(timestep, positions)[:, first:end])
        return codes
