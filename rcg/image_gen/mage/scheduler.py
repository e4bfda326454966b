"""MaskGIT's parallel decoding (arXiv 2202.04200) as a diffusers scheduler: all tokens masked → all tokens known.

A step draws a code for every masked token, keeps the ones drawn with most confidence, and masks the rest again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from rcg.core.categorical import draw_categories
from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.core.schema import NonNegative, Size, Word, check_arguments

Generators = Noise | torch.Generator | Sequence[torch.Generator] | None


@dataclass
class MaskGITSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: int64 [B, N], input of the next step: the kept codes, `mask_token_id` elsewhere.
        pred_original_sample: int64 [B, N], the drawn codes of all tokens, none masked; after the last step, the image.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class MaskGITScheduler(SchedulerMixin, ConfigMixin):
    """Cosine-scheduled confidence decoding of masked tokens, with annealed Gumbel noise and ramped guidance.

    After step i (from 0) of T, floor(N · cos(π/2 · (i+1)/T)) of the N tokens stay masked, but fewer than before and at
    least one (the last step's *drawn* ids are the result, so none is lost).
    Confidence = log p(drawn code) + temperature · (1 − (i+1)/T) · Gumbel noise; the least confident stay masked.

    Random numbers: at each step every sample takes N uniforms for the codes (inverse CDF, codes in ascending order) and
    then N uniforms for the Gumbel noise (−log(−log u)), all float64, for all N tokens whether masked or not: draws 2i and
    2i + 1 of a `Noise`, or the next ones of its generator. So they depend neither on its batch nor on what was drawn before.

    Args:
        mask_token_id: id of a masked token.
        num_inference_steps: default number of steps T.
        temperature: default choice temperature at the start; annealed linearly to 0. (Paper: 6.0 for B, 11.0 for L.)
    """

    order = 1

    @register_to_config
    def __init__(self, mask_token_id: Word, num_inference_steps: Size = 20, temperature: NonNegative = 6.0) -> None:
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
        self._steps = steps
        self.timesteps = torch.arange(steps, device=device)

    def progress(self, timestep: int | Tensor) -> float:
        """(i+1)/T, in (0, 1]."""
        return (int(timestep) + 1) / self._steps

    def masked_counts(self, tokens: int) -> list[int]:
        """How many of `tokens` are masked before each of the T steps: `tokens` at first, at least one at last."""
        self._check_tokens(tokens)
        counts = [tokens]
        for timestep in range(self._steps - 1):
            counts.append(max(1, min(counts[-1] - 1, self._stay(tokens, timestep))))
        return counts

    def _check_tokens(self, tokens: int) -> None:
        if self._steps > tokens:
            raise UserError(
                f"num_inference_steps is {self._steps}, but an image has only {tokens} tokens and each step settles at "
                f"least one; use {tokens} steps or fewer."
            )

    def _stay(self, tokens: int, timestep: int | Tensor) -> int:
        return math.floor(tokens * math.cos(math.pi / 2 * self.progress(timestep)))

    def step(
        self,
        logits: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        temperature: float | None = None,
        uniform: Tensor | None = None,
        gumbel: Tensor | None = None,
        positions: Tensor | None = None,
        return_dict: bool = True,
    ) -> MaskGITSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw codes for the masked tokens and mask the least confident again.

        Args:
            logits: float [B, N, K], or [B, M, K] with `positions`.
            timestep: i in [0, T).
            sample: int64 [B, N], code ids and `mask_token_id`; every row has at least one masked token.
            generator: a `Noise`, one CPU generator a sample, or one for the whole batch, or None (PyTorch's global state).
            temperature: choice temperature at the start; None is the config's.
            uniform: float [B, N] in [0, 1), used in place of the first draw.
            gumbel: float [B, N], used in place of the second draw (standard Gumbel noise).
            positions: int64 [B, M], where the logits belong: at least all masked positions. None: everywhere.
            return_dict: False returns the output's two tensors as a tuple.

        Raises:
            UserError: more steps than tokens, as many generators as there are not samples, or logits that are not
                finite.
        """
        batch, tokens = sample.shape
        self._check_tokens(tokens)
        if logits.device.type == "cpu":  # elsewhere it would be waited for; `generate_tokens` looks once, at the end
            check_finite(logits)
        draw, device = 2 * int(timestep), logits.device
        if uniform is None:
            uniform = _uniform((batch, tokens), generator, draw)
        if gumbel is None:
            gumbel = -torch.log(-torch.log(_uniform((batch, tokens), generator, draw + 1).clamp_min(2.0**-54)))
        uniform, gumbel = uniform.to(device), gumbel.to(device)
        if positions is None:
            positions = torch.arange(tokens, device=device).expand(batch, -1)
        temperature = self.config.temperature if temperature is None else temperature

        drawn, log_p = draw_categories(logits, uniform.gather(1, positions))
        noise = gumbel.to(log_p).gather(1, positions)
        certainty = log_p + temperature * (1 - self.progress(timestep)) * noise
        unknown = sample == self.config.mask_token_id
        result = torch.where(unknown, sample.scatter(1, positions, drawn), sample)
        confidence = torch.zeros_like(sample, dtype=log_p.dtype).scatter_(1, positions, certainty)
        confidence = confidence.masked_fill(~unknown, math.inf)
        stay_masked = unknown.sum(dim=-1, keepdim=True).sub(1).clamp_max(self._stay(tokens, timestep)).clamp_min(1)
        rank = torch.empty_like(result).scatter_(
            1, confidence.argsort(dim=-1), torch.arange(tokens, device=device).expand(batch, -1)
        )
        previous = result.masked_fill(rank < stay_masked, self.config.mask_token_id)
        if not return_dict:
            return previous, result
        return MaskGITSchedulerOutput(prev_sample=previous, pred_original_sample=result)


def check_finite(logits: Tensor) -> None:
    """Raise `UserError` where a model computed NaN or infinity."""
    if not torch.isfinite(logits.sum(dim=-1, dtype=torch.float32)).all():  # one pass, where isfinite alone makes three
        raise UserError("the generator's logits are not finite; its weights are damaged or the precision too low.")


def _uniform(shape: tuple[int, int], generator: Generators, draw: int) -> Tensor:
    """Float64 uniforms in [0, 1), on the generator's device; with one generator a sample, row i is from the i-th."""
    if generator is None:
        return torch.rand(shape, dtype=torch.float64)
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)
    if len(generator) != shape[0]:
        raise UserError(f"{len(generator)} generators were given for {shape[0]} samples; give one for each.")
    if isinstance(generator, Noise):
        return generator.uniform(draw, shape[1])
    rows = [torch.rand(shape[1], dtype=torch.float64, generator=g, device=g.device) for g in generator]
    return torch.stack(rows)
