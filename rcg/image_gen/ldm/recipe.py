"""LDM from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcg.core.schema import Depth, ShareBelowOne, Size
from rcg.image_gen.prediction import PredictionType

if TYPE_CHECKING:
    from rcg.image_gen.diffusion.objective import DiffusionObjective
    from rcg.image_gen.protocol import Task


@dataclass
class LDMRecipe:
    """Sizes of a new LDM; see `rcg.image_gen.protocol.Recipe`. (The published one: preset generator-ldm.)"""

    base_channels: Size = 128
    """Width of the finest level."""
    channel_multipliers: tuple[Depth, ...] = (1, 2)
    """Width of each level, finest first, in units of --base-channels; each level but the first halves the latents."""
    num_res_blocks: Depth = 2
    """Residual blocks of each level on the way down, each with a transformer block; one more on the way up."""
    head_channels: Size = 32
    """Width of an attention head."""
    token_dim: Size = 512
    """Size of the token of a class or cluster, or of condition none; a representation is its own token."""
    norm_groups: Size | None = None
    """Groups of every norm (default: the published 32, but of four channels at least)."""
    dropout: ShareBelowOne = 0.0
    """Dropout in residual blocks."""
    condition_dropout: ShareBelowOne = 0.1
    """Share of samples trained without their condition, so that guidance works; 0 makes a model without guidance."""
    prediction_type: PredictionType = "epsilon"
    """What the model predicts: noise (the paper), or velocity, which gives what is the same all over an image, its colours,
    their due part in the loss."""

    def objective(self, task: Task) -> DiffusionObjective:
        """A new model, ready to be trained."""
        from rcg.image_gen.diffusion.objective import DiffusionObjective
        from rcg.image_gen.ldm.generator import LDMGenerator, default_scheduler
        from rcg.image_gen.ldm.unet import LDMUNet
        from rcg.image_gen.unets import norm_groups

        channels, side = task.square("latents", "LDM")
        model = LDMUNet(
            sample_size=side,
            in_channels=channels,
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            num_res_blocks=self.num_res_blocks,
            head_channels=self.head_channels,
            token_dim=self.token_dim,
            norm_groups=self.norm_groups or norm_groups([self.base_channels]),
            dropout=self.dropout,
            condition_dropout=self.condition_dropout,
            prediction_type=self.prediction_type,
            **task.condition_arguments(),
        )
        return DiffusionObjective(LDMGenerator(model, default_scheduler(self.prediction_type), task.tokenizer))
