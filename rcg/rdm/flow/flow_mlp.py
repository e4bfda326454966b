"""Flows of representations: the residual MLP of RCG tells the clean representation, and the velocity follows from it."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from rcg.core.component import Settled
from rcg.core.schema import Classes, CountOrZero, Depth, ShareBelowOne, Size, check_arguments
from rcg.rdm.classes import Classed
from rcg.rdm.representation_mlp import RepresentationMLP, RepresentationMLPOutput, at_each
from rcg.rdm.statistics import standardized as to_standardized

TIME_SCALE = 1000
"""A timestep is this times the share σ of noise, as in diffusers' flow-matching models."""
LEAST_NOISE = 1e-3
"""σ below which a velocity is all rounding."""


class FlowMLP(Classed, Settled, ModelMixin, ConfigMixin):
    """Velocity of normalised representations: (x_σ, 1000·σ[, class]) → dx/dσ, where x_σ = (1 − σ)·z + σ·ε.

    z are representations whose entries were each brought to mean 0 and variance 1 by the training data's statistics,
    `mean` and `std`, which are kept with the weights. The MLP F of RCG predicts z, as RCG's own does (§3.2) and as is best
    for data near a thin manifold (arXiv 2511.13720): ẑ = F(x / √(σ² + (1 − σ)²), 1000·σ), and dx/dσ ≈ (x − ẑ) / σ.

    (Representations use few of their directions: of 256 about 16 on CIFAR-10. A network that predicts velocity must give
    the noise in all the others back, amplified by 1 / σ. After 400 steps of an MLP of 12 M weights the Fréchet distance,
    floor 1.4, was 9.5, 41, 81 and 103 at 2, 4, 8 and 20 evaluations for velocity, and 4.1, 2.8, 2.7 and 3.0 for this.)

    Args:
        representation_dim: D, entries of a representation; also the size of the time embedding.
        width: hidden size.
        depth: number of residual blocks.
        num_classes: 0 for the unconditional model.
        context_dim: size of the class embedding.
        class_dropout: share of training labels replaced by a learned null class; 0 makes none, and no guidance.
        dropout: inside the blocks.
        standardized: whether drawn representations are brought to mean 0 and standard deviation 1 over their own
            entries, as all of an encoder that standardises have it.
        label_counts: how often each class is to be drawn, relative to the others; None: all alike.
    """

    @register_to_config
    def __init__(
        self,
        representation_dim: Size = 256,
        width: Size = 1536,
        depth: Depth = 12,
        num_classes: Classes = 0,
        context_dim: Size = 512,
        class_dropout: ShareBelowOne = 0.0,
        dropout: ShareBelowOne = 0.0,
        standardized: bool = False,
        label_counts: list[CountOrZero] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(self)
        self.mlp = RepresentationMLP(
            representation_dim, width, depth, num_classes, context_dim, class_dropout, dropout
        )  # its own checks name what is wrong
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(representation_dim))
        self.register_buffer("std", torch.ones(representation_dim))

    def forward(
        self,
        sample: Tensor,
        timestep: int | float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> RepresentationMLPOutput | tuple[Tensor]:
        """The velocity of normalised noisy representations.

        Args:
            sample: [B, D], x_σ.
            timestep: 1000·σ, one for all or [B], in [0, 1000].
            class_labels: as of `RepresentationMLP`.

        Returns:
            an output with sample float32 [B, D], dx/dσ; a tuple of it if not `return_dict`.

        Raises:
            UserError: labels that do not fit the model, or a sample of another dimension.
        """
        sigma = self._noise_levels(sample, timestep)
        clean = self.predict(sample, timestep, class_labels)
        velocity = (sample.float() - clean) / sigma.clamp_min(LEAST_NOISE)
        return RepresentationMLPOutput(sample=velocity) if return_dict else (velocity,)

    def predict(self, sample: Tensor, timestep: int | float | Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The clean normalised representations ẑ, float32 [B, D]; arguments and errors as above."""
        sigma = self._noise_levels(sample, timestep)
        scale = (sigma.square() + (1 - sigma).square()).rsqrt()
        times = sigma[:, 0] * TIME_SCALE
        return self.mlp(sample.float() * scale, times, class_labels, return_dict=False)[0].float()

    def _noise_levels(self, sample: Tensor, timestep: int | float | Tensor) -> Tensor:
        return at_each(timestep, sample).float()[:, None] / TIME_SCALE

    def normalize(self, representations: Tensor) -> Tensor:
        """Representations [B, D] → z float32 [B, D]."""
        return (representations.float() - self.mean.float()) / self.std.float()

    def denormalize(self, z: Tensor) -> Tensor:
        """z [B, D] → representations float32 [B, D], standardised if the model's are."""
        x = z.float() * self.std.float() + self.mean.float()
        return to_standardized(x) if self.config.standardized else x
