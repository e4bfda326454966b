"""The denoiser of representation diffusion: a residual MLP over vectors (RCG, arXiv 2312.03701, section 3.2 and appendix A).

Parameter names follow the published checkpoints (`time_embed`, `input_proj`, `res_blocks.N.in_layers`, `out`), so that
converting one is a change of prefix; only the class embedding has a name of its own (`class_embedding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from rcg.core.component import Settled
from rcg.core.dropout import Dropout
from rcg.core.errors import UserError
from rcg.core.schema import Classes, CountOrZero, Depth, ShareBelowOne, Size, check_arguments
from rcg.rdm.classes import Classed, check_classes, given_or_null


@dataclass
class RepresentationMLPOutput(BaseOutput):
    """What the denoiser returns.

    Attributes:
        sample: [B, D], the prediction (x0 in the paper; see the scheduler's `prediction_type`).
    """

    sample: Tensor


def at_each(timestep: int | float | Tensor, sample: Tensor) -> Tensor:
    """The timestep of each row of a sample [B, D], [B] on its device, which is not waited for."""
    if isinstance(timestep, Tensor):
        return timestep.to(sample.device, non_blocking=True).expand(len(sample))
    return torch.full((len(sample),), timestep, device=sample.device)


class ResidualBlock(nn.Module):
    """x + f(x, t, context): LN → SiLU → Linear, + Linear(SiLU(t)) [+ Linear(SiLU(context))], LN → SiLU → Linear (zero)."""

    def __init__(self, width: int, time_dim: int, context_dim: int | None, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.LayerNorm(width, eps=1e-5), nn.SiLU(), nn.Linear(width, width))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, width))
        self.out_layers = nn.Sequential(
            nn.LayerNorm(width, eps=1e-5), nn.SiLU(), Dropout(dropout), nn.Linear(width, width)
        )
        if context_dim is not None:
            self.context_layers = nn.Sequential(nn.SiLU(), nn.Linear(context_dim, width))

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, width], time [B, time_dim], context [B, context_dim] or None → [B, width]."""
        h = self.in_layers(x) + self.emb_layers(time)
        if context is not None:
            h = h + self.context_layers(context)
        return cast(Tensor, x + self.out_layers(h))


class RepresentationMLP(Classed, Settled, ModelMixin, ConfigMixin):
    """Denoises representations: (x_t, t[, class]) → x0 (or noise, or v: the scheduler's `prediction_type` says which).

    Args:
        representation_dim: D, entries of a representation; also the size of the time embedding.
        width: hidden size; also the size of the sinusoid that enters the time embedding.
        depth: number of residual blocks.
        num_classes: 0 for the unconditional model, which then has no class parameters at all.
        context_dim: size of the class embedding.
        class_dropout: share of training labels replaced by a learned null class. Above 0 the embedding has one row
            more, and guidance works; the published class-conditional model has none.
        dropout: inside the blocks (0 in the paper).
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
        label_counts: list[CountOrZero] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(self)
        if width < 2:
            raise UserError("width is 1, but the time embedding needs at least 2.")
        check_classes(num_classes, class_dropout)
        conditional = num_classes > 0
        self.time_embed = nn.Sequential(
            nn.Linear(width, representation_dim), nn.SiLU(), nn.Linear(representation_dim, representation_dim)
        )
        self.input_proj = nn.Linear(representation_dim, width)
        self.res_blocks = nn.ModuleList(
            ResidualBlock(width, representation_dim, context_dim if conditional else None, dropout)
            for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.SiLU(), nn.Linear(width, representation_dim))
        if conditional:
            self.class_embedding = nn.Embedding(num_classes + (class_dropout > 0), context_dim)
        for layer in [self.out[-1], *(cast(ResidualBlock, block).out_layers[-1] for block in self.res_blocks)]:
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def forward(
        self,
        sample: Tensor,
        timestep: int | float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> RepresentationMLPOutput | tuple[Tensor]:
        """Predict from noisy representations.

        Args:
            sample: [B, D], x_t.
            timestep: one step for all or [B], in [0, 1000).
            class_labels: int64 [B] in [0, num_classes), or `null_class`; None means the null class where there is one.
                On a GPU the range is not read back here (see `rcg.rdm.classes`, where the sampler checks it once).

        Returns:
            `RepresentationMLPOutput` with sample [B, D]; a tuple of it if not `return_dict`.

        Raises:
            UserError: labels that do not fit the model, or a sample of another dimension.
        """
        if sample.ndim != 2 or sample.shape[1] != self.config.representation_dim:
            raise UserError(
                f"the representations have shape {tuple(sample.shape)}, but this model takes "
                f"[batch, {self.config.representation_dim}]."
            )
        # cosines first: cos(t·f_i), sin(t·f_i) with f_i = 10000^(-i / (width // 2))
        sinusoid = get_timestep_embedding(at_each(timestep, sample), self.config.width, True, downscale_freq_shift=0)
        time = self.time_embed(sinusoid.to(self.dtype))
        labels = given_or_null(self, class_labels, len(sample), sample.device)
        context = None if labels is None else self.class_embedding(labels)
        h = self.input_proj(sample.to(self.dtype))
        for block in self.res_blocks:
            h = block(h, time, context)
        out = self.out(h)
        return RepresentationMLPOutput(sample=out) if return_dict else (out,)
