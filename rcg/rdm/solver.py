"""Makes any diffusers scheduler safe to use on representations: right step counts, no clipping, x0 predictions."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.core.steps import set_steps

Generators = Noise | torch.Generator | list[torch.Generator] | None


class Solver:
    """A private copy of a diffusers scheduler, set to a number of steps.

    The copy never clips: `clip_sample` and `thresholding` are for pixels in [-1, 1], and DDIM and DDPM have the former
    on by default, whereas entries of a representation have variance 1. A scheduler that knows no x0 prediction
    (Euler ancestral, PNDM, KDPM2) is given the noise that the x0 prediction implies.

    Args:
        scheduler: any diffusers scheduler of the variance-preserving kind; it is left untouched.
        steps: num_inference_steps.
        eta: DDIM's noise; others ignore it.
        generator: source of the noise of stochastic schedulers: a `Noise`, a generator, or one for each sample.

    Raises:
        UserError: a step count that the scheduler cannot make, or a scheduler of another kind.
    """

    def __init__(self, scheduler: Any, steps: int, eta: float = 1.0, generator: Generators = None) -> None:
        if not 0 <= eta <= 1:
            raise UserError(f"eta is {eta}, but it must lie in [0, 1].")
        self.name = type(scheduler).__name__
        if not all(hasattr(scheduler, a) for a in ("alphas_cumprod", "set_timesteps", "step", "init_noise_sigma")):
            raise UserError(
                f"{self.name} does not follow the noise schedule of a representation model; take a diffusers scheduler "
                "with betas, such as DPMSolverMultistepScheduler."
            )
        self.to_noise = False
        self.scheduler = self._copy(scheduler)
        if self.scheduler.config.prediction_type == "sample" and not self._accepts_predictions(steps):
            self.to_noise = True
            self.scheduler = self._copy(scheduler, prediction_type="epsilon")
        set_steps(self.scheduler, steps)
        accepted = inspect.signature(self.scheduler.step).parameters
        self.options: dict[str, Any] = {"return_dict": False}
        if "eta" in accepted:
            self.options["eta"] = eta
        self.noise: Noise | None = None
        if isinstance(generator, Noise) and "variance_noise" in accepted:
            self.noise = generator
        elif "generator" in accepted:
            self.options["generator"] = generator.generators() if isinstance(generator, Noise) else generator
        self.steps_made = 0

    @property
    def timesteps(self) -> Tensor:
        """Where the denoiser is evaluated, from noise to data; on the CPU, as schedulers' tables are: nobody waits for a GPU."""
        return cast(Tensor, self.scheduler.timesteps)

    def start(self, noise: Tensor) -> Tensor:
        """The first x from standard normal noise [B, D]."""
        return cast(Tensor, noise * self.scheduler.init_noise_sigma)

    def model_input(self, x: Tensor, t: Tensor) -> Tensor:
        """What the denoiser is fed at `t`: x_t = √ᾱ·x0 + √(1-ᾱ)·ε, whatever the solver's own scaling is."""
        return cast(Tensor, self.scheduler.scale_model_input(x, t))

    def step(self, prediction: Tensor, t: Tensor, x: Tensor, model_input: Tensor) -> Tensor:
        """From x at `t` to x at the next timestep."""
        if self.to_noise:
            alpha = self._alpha(t)
            prediction = (model_input - alpha.sqrt() * prediction) / (1 - alpha).sqrt()
        self.steps_made += 1
        if self.noise is not None:
            self.options["variance_noise"] = self.noise.normal(self.steps_made, x.shape[1]).to(x.device)
        return cast(Tensor, self.scheduler.step(prediction, t, x, **self.options)[0])

    def _alpha(self, t: Tensor) -> Tensor:
        """ᾱ at a possibly fractional timestep: the noise level √((1-ᾱ)/ᾱ) is interpolated, as diffusers does."""
        alphas = self.scheduler.alphas_cumprod.double()
        low = t.double().floor().long()
        high = (low + 1).clamp(max=len(alphas) - 1)
        sigma = ((1 - alphas) / alphas).sqrt()
        level = torch.lerp(sigma[low], sigma[high], t.double() - low)
        return (1 / (1 + level**2)).float()

    @staticmethod
    def _copy(scheduler: Any, **changes: Any) -> Any:
        for switch in ("clip_sample", "thresholding"):
            if switch in scheduler.config:
                changes[switch] = False
        return type(scheduler).from_config(scheduler.config, **changes)

    def _accepts_predictions(self, steps: int) -> bool:
        trial = self._copy(self.scheduler)
        set_steps(trial, steps)
        zeros = torch.zeros(1, 2)
        own = {"generator": torch.Generator()} if "generator" in inspect.signature(trial.step).parameters else {}
        try:
            trial.scale_model_input(zeros, trial.timesteps[0])
            trial.step(zeros, trial.timesteps[0], zeros, **own)
        except (ValueError, NotImplementedError) as e:
            if "prediction" not in str(e).lower():
                raise
            return False
        return True
