"""What a flow of representations is trained to do: flow matching (arXiv 2210.02747) between noise and normalised data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rcg.core import draws
from rcg.core.errors import UserError
from rcg.core.flow import flow_scheduler
from rcg.core.schema import is_number
from rcg.rdm.classes import training_labels
from rcg.rdm.draw import mean_loss
from rcg.rdm.flow.flow_mlp import TIME_SCALE, FlowMLP
from rcg.rdm.flow.generator import FlowGenerator
from rcg.rdm.statistics import half_hidden_noise, mean_and_std

FIT_SAMPLES = 20_000
NOISE_FLOOR = 0.1
"""Least σ that the loss is divided by."""


class FlowObjective(nn.Module):
    """Mean squared error of the predicted z at x_σ = (1 − σ)·z + σ·ε, over max(σ, `NOISE_FLOOR`)²: that of the velocity.

    Noise levels are logit-normal (arXiv 2403.03206, §3.1) with a shift: σ / (1 − σ) = `shift` · exp(`time_std` · N(0, 1)),
    spread evenly over the samples of a batch. A shift of the levels is RAE's way (arXiv 2510.11690, §4) to fit the noise
    to the dimension, by √(dimension / 4096) and never below 1, for latents of tens of thousands of numbers. That rule says
    nothing for 256, so the shift is measured: the odds of the noise level that hides half of the variance of the data at
    hand (`rcg.rdm.statistics.half_hidden_noise`). Sampling shifts its steps alike.

    See `rcg.rdm.protocol.Objective`.

    Args:
        rdm: the model, trained here.
        time_shift: of the noise levels; None measures it.
        time_std: of the normal distribution behind σ.

    Raises:
        UserError: a number out of range.
    """

    fit_samples = FIT_SAMPLES

    def __init__(self, rdm: FlowMLP, time_shift: float | None = None, time_std: float = 1.0) -> None:
        super().__init__()
        if time_shift is not None and not (is_number(time_shift) and 0.01 <= time_shift <= 100):
            raise UserError(f"time_shift is {time_shift}, but it must lie in [0.01, 100].")
        if not is_number(time_std) or not 0 < time_std <= 10:
            raise UserError(f"time_std is {time_std}, but it must lie in (0, 10].")
        self.rdm = rdm
        self.time_shift, self.time_std = time_shift, time_std
        self.shift: Tensor
        self.register_buffer("shift", torch.tensor(1.0 if time_shift is None else float(time_shift)))

    @property
    def generator(self) -> FlowGenerator:
        """The model with DPM-Solver++ 2M, its steps shifted as the training's noise levels are."""
        return FlowGenerator(self.rdm, flow_scheduler(round(float(self.shift), 4)))

    @torch.no_grad()
    def fit(self, representations: Tensor) -> None:
        """Measure mean and standard deviation of each entry, and the shift unless it is given."""
        mean, std = mean_and_std(representations)
        self.rdm.mean.copy_(mean)
        self.rdm.std.copy_(std)
        if self.time_shift is None:
            self.shift.fill_(min(max(half_hidden_noise(representations), 0.01), 100.0))

    def identity(self) -> dict[str, Any]:
        """The distribution of noise levels (a measured shift is in the checkpoint)."""
        return {"noise_levels": [self.time_shift, self.time_std]}

    def noise_levels(self, quantiles: Tensor) -> Tensor:
        """σ in [0, 1] at quantiles in [0, 1] of its distribution."""
        return torch.sigmoid(self.shift.log() + self.time_std * torch.special.ndtri(quantiles))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"loss": scalar}` of a batch with "representations" [B, D] (and "labels" [B] if class-conditional)."""
        z = self.rdm.normalize(batch["representations"])
        places = draws.stratified(len(z), z.device)
        labels = training_labels(self.rdm, batch)
        return {"loss": self.loss(z, self.noise_levels(places), draws.normal_like(z), labels).mean()}

    def loss(self, z: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of each sample [B], of normalised z [B, D] at given noise levels [B] and noise [B, D]."""
        noisy = torch.lerp(z, noise, sigma[:, None])
        clean = self.rdm.predict(noisy, TIME_SCALE * sigma, labels)
        return (clean - z).square().mean(dim=1) / sigma.clamp_min(NOISE_FLOOR).square()

    @torch.no_grad()
    def evaluate(self, representations: Tensor, labels: Tensor | None) -> dict[str, float]:
        """`val_loss`, at noise levels spread evenly over their distribution and always the same noise; and their shift."""
        z = self.rdm.normalize(representations)
        sigma = self.noise_levels((torch.arange(len(z), device=z.device) + 0.5) / len(z))
        return {"val_loss": mean_loss(self.loss, z, sigma, labels), "time_shift": float(self.shift)}

    def reconstruct(self, representations: Tensor) -> Tensor | None:
        """None: representations are not coded."""
        return None
