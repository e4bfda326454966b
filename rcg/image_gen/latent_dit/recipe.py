"""DiT from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rcg.core.schema import Depth, MlpRatio, Range, ShareBelowOne, Size
from rcg.image_gen.prediction import PredictionType

if TYPE_CHECKING:
    from rcg.image_gen.diffusion.objective import DiffusionObjective
    from rcg.image_gen.protocol import Task


@dataclass
class DiTRecipe:
    """Sizes and objective of a new DiT; see `rcg.image_gen.protocol.Recipe`. The defaults are DiT-S/2."""

    patch_size: Annotated[int, Range(1, 16)] = 2
    """Side of a patch of latents; (side of the latents / patch size)² tokens an image."""
    width: Size = 384
    """Size of the residual stream (DiT-S, B, L, XL: 384, 768, 1024, 1152)."""
    depth: Depth = 12
    """Blocks (12, 12, 24, 28)."""
    num_heads: Depth = 6
    """Attention heads (6, 12, 16, 16)."""
    mlp_ratio: MlpRatio = 4.0
    """Hidden size of the MLPs as a multiple of the width."""
    condition_dropout: ShareBelowOne = 0.1
    """Share of samples trained without their condition, so that guidance works; 0 makes a model without guidance."""
    learn_sigma: bool = True
    """Learn the variance of a sampling step, too, which exact sampling uses."""
    prediction_type: PredictionType = "epsilon"
    """What the model predicts: noise (the paper), or velocity, which gives what is the same all over an image, its colours,
    their due part in the loss."""

    def objective(self, task: Task) -> DiffusionObjective:
        """A new model, ready to be trained."""
        from rcg.image_gen.diffusion.generator import default_scheduler
        from rcg.image_gen.diffusion.objective import DiffusionObjective
        from rcg.image_gen.latent_dit.generator import DiTGenerator
        from rcg.image_gen.latent_dit.transformer import DiT

        channels, side = task.square("latents", "DiT")
        model = DiT(
            sample_size=side,
            patch_size=self.patch_size,
            in_channels=channels,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            learn_sigma=self.learn_sigma,
            condition_dropout=self.condition_dropout,
            prediction_type=self.prediction_type,
            **task.condition_arguments(),
        )
        return DiffusionObjective(DiTGenerator(model, default_scheduler(self.prediction_type), task.tokenizer))
