"""The Gaussian diffusion process of the reference's DiT, ADM and LDM: noise comes in T steps, and is taken away step by step.

x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε, with ᾱ_t = ∏ (1 − β). Equations are those of DDPM (arXiv 2006.11239) and of improved
diffusion (arXiv 2102.09672), which lets a model choose its variance between two bounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.image_gen.prediction import PredictionType

PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)

LEAST_LIKELIHOOD = 1e-12
"""Below this, the logarithm of a probability is cut off."""
EDGE = 0.999
"""Values of x₀ beyond ± this are in the first or last of the 256 bins, which reach to infinity."""


def betas_of(scheduler: Any) -> Tensor:
    """The variances β added at each of the T steps, float64 [T], of a diffusers scheduler with betas.

    diffusers computes the two usual schedules in float32; here they are exact, as in the reference.
    """
    config, root = scheduler.config, {"linear": 1.0, "scaled_linear": 0.5}.get(scheduler.config.beta_schedule)
    if root is None or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        return scheduler.betas.double().cpu()
    ends = config.beta_start**root, config.beta_end**root
    return torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** (1 / root)


def spaced(total: int, count: int) -> list[int]:
    """`count` of the steps 0 … total − 1, both ends among them, as evenly as whole numbers can be (the reference's choice).

    Raises:
        UserError: fewer than two, or more than there are.
    """
    if not 2 <= count <= total:
        raise UserError(f"num_inference_steps is {count}, but exact sampling takes between 2 and {total}.")
    stride = (total - 1) / (count - 1)
    return [round(place) for place in itertools.accumulate(itertools.repeat(stride, count - 1), initial=0.0)]


class GaussianDiffusion(nn.Module):
    """The process at K of its T steps; at these, noise levels are those of the whole one.

    Its tables are buffers (float32, made in float64), which move with the module and are not saved; `times` is what the
    model is told at each step.

    Args:
        betas: float64 [T].
        timesteps: the K steps, rising, at least two; None: all.
        prediction_type: what the model predicts.
    """

    signal: Tensor
    """√ᾱ [K]."""
    sigma: Tensor
    """√(1 − ᾱ) [K]."""
    clean_of_noisy: Tensor
    clean_of_prediction: Tensor
    """x₀ = the first [K] · x_t − the second [K] · what the model predicts."""
    mean_of_clean: Tensor
    mean_of_noisy: Tensor
    """The mean of q(x_{t-1} | x_t, x₀) is the first [K] · x₀ + the second [K] · x_t."""
    least_log_variance: Tensor
    """log β̃ [K], the variance of q(x_{t-1} | x_t, x₀); at the first step, where that is 0, the second's."""
    most_log_variance: Tensor
    """log β [K]."""
    fixed_log_variance: Tensor
    """The same, but β̃ of the second step at the first: of models that do not choose ("fixed large")."""

    def __init__(
        self, betas: Tensor, timesteps: Sequence[int] | None = None, prediction_type: PredictionType = "epsilon"
    ) -> None:
        super().__init__()
        self.predicts_noise = prediction_type == "epsilon"
        chosen = torch.arange(len(betas)) if timesteps is None else torch.tensor(timesteps)
        alphas = torch.cumprod(1 - betas, 0)[chosen]  # ᾱ of the chosen steps
        before = torch.cat([alphas.new_ones(1), alphas[:-1]])
        betas = 1 - alphas / before
        least = betas * (1 - before) / (1 - alphas)
        tables = {
            "signal": alphas.sqrt(),
            "sigma": (1 - alphas).sqrt(),
            "clean_of_noisy": (1 / alphas if self.predicts_noise else alphas).sqrt(),
            "clean_of_prediction": (1 / alphas - 1 if self.predicts_noise else 1 - alphas).sqrt(),
            "mean_of_clean": betas * before.sqrt() / (1 - alphas),
            "mean_of_noisy": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
            "least_log_variance": torch.cat([least[1:2], least[1:]]).log(),
            "most_log_variance": betas.log(),
            "fixed_log_variance": torch.cat([least[1:2], betas[1:]]).log(),
        }
        self.times: list[int] = chosen.tolist()
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    @classmethod
    def of(cls, scheduler: Any, num_steps: int | None = None) -> Self:
        """The process that a diffusers scheduler reverses, at `num_steps` of its steps (see `spaced`) or at all."""
        betas = betas_of(scheduler)
        timesteps = None if num_steps is None else spaced(len(betas), num_steps)
        return cls(betas, timesteps, scheduler.config.prediction_type)

    def __len__(self) -> int:
        """K."""
        return len(self.times)

    def add_noise(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """x_t (DDPM, equation 4): clean, noise [B, …]; steps int64 [B], places among the K → [B, …]."""
        return _rows(self.signal, steps, clean) * clean + _rows(self.sigma, steps, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """What the model is to predict, [B, …]; arguments as in `add_noise`."""
        if self.predicts_noise:
            return noise
        return _rows(self.signal, steps, clean) * noise - _rows(self.sigma, steps, clean) * clean

    def clean(self, noisy: Tensor, prediction: Tensor, steps: Tensor) -> Tensor:
        """The x₀ that `noisy`, x_t, was made from if the prediction is right; arguments as in `add_noise`."""
        part = _rows(self.clean_of_prediction, steps, noisy) * prediction
        return _rows(self.clean_of_noisy, steps, noisy) * noisy - part

    def prediction(self, noisy: Tensor, clean: Tensor, steps: Tensor) -> Tensor:
        """What a model that takes `noisy` for a noisy `clean` predicts: the inverse of `clean`; arguments as in `add_noise`."""
        part = _rows(self.clean_of_noisy, steps, noisy) * noisy
        return (part - clean) / _rows(self.clean_of_prediction, steps, noisy)

    def mean(self, clean: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x₀) (DDPM, equation 7); arguments as in `add_noise`."""
        return _rows(self.mean_of_clean, steps, clean) * clean + _rows(self.mean_of_noisy, steps, noisy) * noisy

    def log_variance(self, choice: Tensor | None, steps: Tensor, like: Tensor) -> Tensor:
        """The log-variance of p(x_{t-1} | x_t) (improved diffusion, equation 15).

        Args:
            choice: [B, …], −1 is the least variance and 1 the most; None for a model that does not choose.
            steps: int64 [B].
            like: of the shape [B, …].

        Returns:
            [B, …]; without a choice [B, 1, …].
        """
        if choice is None:
            return _rows(self.fixed_log_variance, steps, like)
        share = (choice + 1) / 2
        least, most = _rows(self.least_log_variance, steps, like), _rows(self.most_log_variance, steps, like)
        return share * most + (1 - share) * least

    def bound(self, mean: Tensor, log_variance: Tensor, clean: Tensor, noisy: Tensor, steps: Tensor) -> Tensor:
        """The term of the variational bound for each sample's step, in bits a number, [B] (DDPM, equation 5).

        KL(q(x_{t-1} | x_t, x₀) ‖ p(x_{t-1} | x_t)); at the first step −log p(x₀ | x₁) of x₀ sorted into 256 bins on
        [−1, 1]. (Latents are no bytes; the reference treats them as such, too.)

        Args:
            mean, log_variance: of p, [B, …].
            clean, noisy, steps: x₀, x_t and t, as in `add_noise`.
        """
        q_mean, q_log_variance = self.mean(clean, noisy, steps), _rows(self.least_log_variance, steps, clean)
        squares = (q_mean - mean) ** 2 * torch.exp(-log_variance)
        divergence = 0.5 * (log_variance - q_log_variance + torch.exp(q_log_variance - log_variance) + squares - 1)
        surprise = -_log_likelihood(clean, mean, 0.5 * log_variance)
        bits = torch.stack([surprise, divergence]).flatten(2).mean(2) / math.log(2)
        return torch.where(steps == 0, bits[0], bits[1])


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A model's output [B, C or 2C, …] as its prediction [B, C, …] and its choice of variance, if it has one.

    Raises:
        UserError: another number of channels.
    """
    if output.shape[1] not in (channels, 2 * channels):
        raise UserError(
            f"the model's output has {output.shape[1]} channels, but {channels} (a prediction) or {2 * channels} (and variance) "
            "are expected; give the model that belongs to these data."
        )
    return output[:, :channels], output[:, channels:] if output.shape[1] == 2 * channels else None


def _rows(table: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    """Entries of a table for each sample, [B, 1, …] for `like` [B, …]."""
    return table[steps].view(-1, *[1] * (like.ndim - 1))


def _normal_cdf(x: Tensor) -> Tensor:
    """Φ(x), by the approximation that the reference takes (Page 1977)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _log_likelihood(clean: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the probability that a normal variate falls into the bin, 2/255 wide, around each number of x₀."""
    centred, precision = clean - mean, torch.exp(-log_std)
    upper, lower = _normal_cdf(precision * (centred + 1 / 255)), _normal_cdf(precision * (centred - 1 / 255))
    share = torch.where(clean < -EDGE, upper, torch.where(clean > EDGE, 1 - lower, upper - lower))
    return share.clamp_min(LEAST_LIKELIHOOD).log()
