"""The velocity of representation flows: the residual MLP of RCG, fed and read such that its task is alike at all noise levels."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from rcg.core.component import Settled
from rcg.core.schema import Classes, CountOrZero, Depth, ShareBelowOne, Size, check_arguments
from rcg.rdm.classes import null_class
from rcg.rdm.representation_mlp import RepresentationMLP, RepresentationMLPOutput
from rcg.rdm.statistics import standardized as to_standardized

TIME_SCALE = 1000
"""A timestep is this times the share σ of noise, as in diffusers' flow-matching models."""


class FlowMLP(Settled, ModelMixin, ConfigMixin):
    """Velocity of normalised representations: (x_σ, 1000·σ[, class]) → dx/dσ, where x_σ = (1 − σ)·z + σ·ε.

    z are representations whose entries were each brought to mean 0 and variance 1 by the training data's statistics,
    `mean` and `std`, which are kept with the weights. The MLP F of RCG is wrapped as EDM does it (arXiv 2206.00364, §5),
    for straight paths and data of variance 1: with s² = σ² + (1 − σ)²,

        dx/dσ ≈ (2σ − 1) / s² · x + F(x / s, 1000·σ) / s.

    The first term is the best linear guess where entries are independent. What is left for F has variance 1 at every
    noise level, as has its input; a new model, whose F is 0, draws independent normal entries.

    Args:
        representation_dim: D, entries of a representation; also the size of the time embedding.
        width: hidden size.
        depth: number of residual blocks.
        num_classes: 0 for the unconditional model.
        context_dim: size of the class embedding.
        class_dropout: share of training labels replaced by a learned null class; 0 makes none, and no guidance.
        dropout: inside the blocks.
        standardized: whether drawn representations are brought to mean 0 and standard deviation 1 over their own
            entries, as all of an encoder that standardises have it. (Fréchet distance on a mixture of Gaussians on a sphere
            of 64 numbers, floor 0.85, with and without: 1.10 and 1.11 at 8 evaluations, 3.8 and 11.9 at 2.)
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

    @property
    def null_class(self) -> int | None:
        """The label that means "no class", or None where the model has no such label (then there is no guidance)."""
        return null_class(self.config)

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
        x = sample.float()
        t = torch.as_tensor(timestep, device=x.device).float().expand(len(x))
        sigma = t[:, None] / TIME_SCALE
        square = sigma.square() + (1 - sigma).square()
        scale = square.rsqrt()
        inner = self.mlp(x * scale, t, class_labels, return_dict=False)[0].float()
        velocity = (2 * sigma - 1) / square * x + inner * scale
        return RepresentationMLPOutput(sample=velocity) if return_dict else (velocity,)

    def normalize(self, representations: Tensor) -> Tensor:
        """Representations [B, D] → z float32 [B, D]."""
        return (representations.float() - self.mean.float()) / self.std.float()

    def denormalize(self, z: Tensor) -> Tensor:
        """z [B, D] → representations float32 [B, D], standardised if the model's are."""
        x = z.float() * self.std.float() + self.mean.float()
        return to_standardized(x) if self.config.standardized else x
