"""What the published RDM is trained to do: to take noise away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rcg.core import draws
from rcg.core.errors import UserError
from rcg.rdm.classes import training_labels
from rcg.rdm.ddpm.generator import DDPMGenerator
from rcg.rdm.draw import mean_loss
from rcg.rdm.representation_mlp import RepresentationMLP
from rcg.rdm.schedule import PREDICTION_TYPES, TRAIN_STEPS, PredictionType, alphas_cumprod, fast_scheduler


class DDPMObjective(nn.Module):
    """The denoising loss: x_t = √ᾱ_t·x0 + √(1-ᾱ_t)·ε, t uniform, mean squared error on the prediction target.

    See `rcg.rdm.protocol.Objective`; nothing is fitted.

    Args:
        rdm: the denoiser, trained here.
        prediction_type: `sample` (x0, the paper's), `epsilon`, or `v_prediction` (√ᾱ·ε - √(1-ᾱ)·x0).
    """

    fit_samples = 0

    def __init__(self, rdm: RepresentationMLP, prediction_type: PredictionType = "sample") -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction_type is {prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}.")
        self.rdm = rdm
        self.prediction_type: PredictionType = prediction_type
        alphas = alphas_cumprod()
        self.signal: Tensor
        self.noise: Tensor
        self.register_buffer("signal", alphas.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - alphas).sqrt().float(), persistent=False)

    @property
    def generator(self) -> DDPMGenerator:
        """The model with the few-step default scheduler."""
        return DDPMGenerator(self.rdm, fast_scheduler(self.prediction_type))

    def fit(self, representations: Tensor) -> None:
        """Nothing to fit."""

    def identity(self) -> dict[str, Any]:
        """The training target."""
        return {"prediction_type": self.prediction_type}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"loss": scalar}` of a batch with "representations" [B, D] (and "labels" [B] if class-conditional)."""
        x0 = batch["representations"].float()
        t = draws.integers(TRAIN_STEPS, len(x0), x0.device)
        labels = training_labels(self.rdm, batch)
        return {"loss": self.loss(x0, t, draws.normal_like(x0), labels).mean()}

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t [B, D] from clean x0 [B, D], steps t int64 [B] and standard normal noise [B, D]."""
        return self.signal[t, None] * x0 + self.noise[t, None] * noise

    def loss(self, x0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of each sample [B], at given steps and noise."""
        if self.prediction_type == "sample":
            target = x0
        elif self.prediction_type == "epsilon":
            target = noise
        else:
            target = self.signal[t, None] * noise - self.noise[t, None] * x0
        prediction = self.rdm(self.diffuse(x0, t, noise), t, labels).sample
        return (prediction.float() - target).square().mean(dim=1)

    @torch.no_grad()
    def evaluate(self, representations: Tensor, labels: Tensor | None) -> dict[str, float]:
        """`val_loss`, at steps spread evenly over the schedule and always the same noise."""
        count = len(representations)
        t = ((torch.arange(count, device=representations.device) + 0.5) * TRAIN_STEPS / count).long()
        return {"val_loss": mean_loss(self.loss, representations, t, labels)}

    def reconstruct(self, representations: Tensor) -> Tensor | None:
        """None: representations are not coded."""
        return None
