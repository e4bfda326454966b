"""From noise and condition to data, with a model that predicts noise or velocity: a few steps of a solver, or the reference's.

A model is called as `model(x, t, representations, class_labels)`, x float [B, C, …], t a number in [0, T), and gives its
prediction, [B, C, …], which is what the scheduler's `prediction_type` says, or that and its choice of variance, [B, 2C, …]. It has
`config` (see `check_condition`) and `device`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.rng import Noise
from rcg.core.steps import set_steps
from rcg.image_gen.denoising import GuidedModel
from rcg.image_gen.diffusion.gaussian import PREDICTION_TYPES, GaussianDiffusion, betas_of, split_output
from rcg.image_gen.protocol import Request

DEFAULT_STEPS = 25
EXACT_STEPS = 250
"""Of the reference's evaluation."""


def check_scheduler(scheduler: Any) -> None:
    """Raise `UserError` for a scheduler that does not take predicted noise or velocity, or not that alone."""
    name, config = type(scheduler).__name__, scheduler.config
    if not hasattr(scheduler, "alphas_cumprod") or config.get("prediction_type") not in PREDICTION_TYPES:
        raise UserError(
            f"{name} as it is set takes no predicted noise; take a diffusers scheduler with betas and the prediction_type "
            "that the model was trained with ('epsilon' or 'v_prediction'), such as DPMSolverMultistepScheduler."
        )
    asked = list(inspect.signature(scheduler.step).parameters.values())[3:]
    if any(p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in asked):
        raise UserError(
            f"{name} asks for more than a prediction and a sample; take DPMSolverMultistepScheduler or the like."
        )
    if config.get("use_flow_sigmas"):
        raise UserError(f"{name} as it is set follows a straight flow, and this generator does not; unset it.")
    if str(config.get("variance_type")).startswith("learned"):
        raise UserError(
            f"{name} is set to variance_type {config.variance_type!r}, but it is given the prediction alone; leave that out, "
            "and sample with exact=True to use the learned variance."
        )


@dataclass(frozen=True)
class Drawing:
    """What is drawn besides what a `Request` says.

    Attributes:
        model, guiding_model, rows: see `GuidedModel`.
        scheduler: of diffusers, see `check_scheduler`; it is left untouched.
        shape: of a sample, [C, …].
        guided_channels: guidance acts on the first so many; None: on all of the prediction, never on the variance.
        clip: whether data lie in [−1, 1], and predictions of them are clipped to it.
        eta: how much noise DDIM adds at each step (its equation 16); of no meaning to other schedulers.
    """

    model: Any
    guiding_model: Any
    scheduler: Any
    shape: tuple[int, ...]
    rows: int
    guided_channels: int | None = None
    clip: bool = False
    eta: float = 0.0

    def guided(self, request: Request) -> Callable[[Tensor, float], tuple[Tensor, Tensor | None]]:
        """Of x and t: the prediction, float32 [B, C, …], and the choice of variance, of the same shape or None."""
        channels, last = self.shape[0], int(self.scheduler.config.num_train_timesteps) - 1
        model = GuidedModel(
            self.model,
            request.representations,
            request.class_labels,
            request.guidance,
            self.guiding_model,
            self.rows,
            channels if self.guided_channels is None else min(channels, self.guided_channels),
        )
        return lambda x, t: split_output(model(x, t, min(1.0, max(0.0, 1 - t / last))), channels)

    def noise(self, noise: Noise, draw: int) -> Tensor:
        """Standard normal float32 [B, *shape] on the model's device."""
        return noise.normal(draw, math.prod(self.shape)).view(len(noise), *self.shape).to(self.model.device)


class DiffusionSolver:
    """A private copy of a diffusers scheduler, set to a number of steps, whose noise is that of each sample.

    Args:
        drawing: its scheduler and eta. (Clipping is left to who predicts: schedulers do it in different ways.)
        request: its number of steps and its noise; draw 0 is the start, draw i + 1 is added after evaluation i.

    Raises:
        UserError: a scheduler that does not fit, or a number of steps that it cannot make.
    """

    def __init__(self, drawing: Drawing, request: Request) -> None:
        check_scheduler(drawing.scheduler)
        switches = {"clip_sample": False, "thresholding": False}
        config = drawing.scheduler.config
        changes = {name: value for name, value in switches.items() if name in config}
        self.scheduler = type(drawing.scheduler).from_config(config, **changes)
        set_steps(
            self.scheduler, request.num_inference_steps, distinct=False
        )  # on the CPU: nobody waits for the device
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # it would look for the first timestep among rounded ones
        self.drawing, self.random, self.steps = drawing, request.noise, request.num_inference_steps
        self.times = self._times()
        """t of each evaluation; not rounded, as the scheduler's own may be."""
        if self.times[0] < self.times[-1]:
            raise UserError(
                f"{type(self.scheduler).__name__} as it is set goes from data to noise; take another scheduler."
            )
        self.options: dict[str, Any] = {"return_dict": False}
        accepted = inspect.signature(self.scheduler.step).parameters
        if "eta" in accepted:
            self.options["eta"] = drawing.eta
            adds_noise = drawing.eta > 0
        else:
            adds_noise = config.get("algorithm_type") not in ("dpmsolver", "dpmsolver++")
        self.by_counter = adds_noise and "variance_noise" in accepted
        if adds_noise and "generator" in accepted and not self.by_counter:
            self.options["generator"] = request.noise.generators()

    def _times(self) -> list[float]:
        timesteps = self.scheduler.timesteps
        if not hasattr(self.scheduler, "sigmas") or timesteps.is_floating_point():
            return timesteps.tolist()
        levels = (1 / torch.cumprod(1 - betas_of(self.scheduler), 0) - 1).log().numpy() / 2
        wanted = self.scheduler.sigmas[: len(timesteps)].double().log().cpu().numpy()
        return np.interp(wanted, levels, np.arange(len(levels))).tolist()

    def start(self) -> Tensor:
        """The first x, [B, *shape]."""
        return self.drawing.noise(self.random, 0) * self.scheduler.init_noise_sigma

    def model_input(self, i: int, x: Tensor) -> Tensor:
        """What the model is to see at evaluation i: √ᾱ·x₀ + √(1 − ᾱ)·ε, whatever the solver's own scaling is."""
        return self.scheduler.scale_model_input(x, self.scheduler.timesteps[i])

    def step(self, i: int, prediction: Tensor, x: Tensor) -> Tensor:
        """The next x after evaluation i, which predicted `prediction`."""
        if self.by_counter:
            self.options["variance_noise"] = self.drawing.noise(self.random, i + 1)
        return self.scheduler.step(prediction, self.scheduler.timesteps[i], x, **self.options)[0]

    def ended_step(self, i: int) -> bool:
        """Whether evaluation i, the last one so far, ended a step: one of Heun's takes two, and the first of PNDM's several."""
        return bool(getattr(self.scheduler, "state_in_first_order", i >= len(self.times) - self.steps))


@torch.no_grad()
def sample_quickly(drawing: Drawing, request: Request) -> Tensor:
    """Draw data in `request.num_inference_steps` steps of the scheduler; sample i depends on row i of the request alone.

    Guidance acts on all channels; its progress is 1 − t / (T − 1).

    Returns:
        float32 [B, *shape] on the model's device. The callback is called after each step with the data as predicted by then.

    Raises:
        UserError: a scheduler, condition, guidance or number of steps that cannot be used, or a result that is not finite.
    """
    model, solver = drawing.guided(request), DiffusionSolver(drawing, request)
    process = GaussianDiffusion.of(drawing.scheduler).to(drawing.model.device)
    x, done = solver.start(), 0
    for i, t in enumerate(solver.times):
        seen = solver.model_input(i, x)
        prediction, _ = model(seen, t)
        steps = torch.full((len(x),), round(t), device=x.device)
        if drawing.clip:
            clean = process.clean(seen, prediction, steps).clamp(-1, 1)
            prediction = process.prediction(seen, clean, steps)
        x = solver.step(i, prediction, x)
        last = i + 1 == len(solver.times)
        if request.callback is not None and (last or solver.ended_step(i)):
            request.callback(done, x if last else process.clean(seen, prediction, steps))
            done += 1
    return _finite(x)


@torch.no_grad()
def sample_exactly(drawing: Drawing, request: Request) -> Tensor:
    """Draw data by ancestral sampling at evenly spaced steps (DDPM, algorithm 2), with the variance that the model chooses.

    What the reference's `p_sample_loop` computes, noise by noise; arguments, result and errors as of `sample_quickly`.
    """
    model, device = drawing.guided(request), drawing.model.device
    process = GaussianDiffusion.of(drawing.scheduler, request.num_inference_steps).to(device)
    x = drawing.noise(request.noise, 0)
    for done, step in enumerate(reversed(range(len(process)))):
        steps = torch.full((len(x),), step, device=device)
        prediction, choice = model(x, process.times[step])
        clean = process.clean(x, prediction, steps)
        if drawing.clip:
            clean = clean.clamp(-1, 1)
        mean = process.mean(clean, x, steps)
        if step > 0:
            deviation = torch.exp(0.5 * process.log_variance(choice, steps, x))
            mean = mean + deviation * drawing.noise(request.noise, done + 1)
        x = mean
        if request.callback is not None:
            request.callback(done, clean)
    return _finite(x)


def _finite(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise UserError("what the generator made is not finite; its weights are damaged or the precision too low.")
    return x
