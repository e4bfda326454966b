"""ADM from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcg.core.schema import Depth, ShareBelowOne, Size
from rcg.image_gen.prediction import PredictionType

if TYPE_CHECKING:
    from rcg.image_gen.diffusion.objective import DiffusionObjective
    from rcg.image_gen.protocol import Task


@dataclass
class ADMRecipe:
    """Sizes of a new ADM; see `rcg.image_gen.protocol.Recipe`. (The published one: preset generator-adm.)"""

    base_channels: Size = 64
    """Width of the finest level."""
    channel_multipliers: tuple[Depth, ...] = (1, 2, 2)
    """Width of each level, finest first, in units of --base-channels; each level but the first halves the image."""
    num_res_blocks: Depth = 2
    """Residual blocks of each level on the way down; one more on the way up."""
    attention_resolutions: tuple[Size, ...] | None = None
    """Sides in pixels of the levels with self-attention (default: those of 5 to 16, as 16 and 8)."""
    head_channels: Size = 64
    """Width of an attention head."""
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
        from rcg.image_gen.adm.generator import ADMGenerator
        from rcg.image_gen.adm.unet import ADMUNet
        from rcg.image_gen.diffusion.generator import default_scheduler
        from rcg.image_gen.diffusion.objective import DiffusionObjective
        from rcg.image_gen.unets import norm_groups

        channels, side = task.square("images", "ADM")
        attending = self.attention_resolutions
        if attending is None:
            sides = [side // 2**level for level in range(len(self.channel_multipliers))]
            attending = tuple(s for s in sides if 5 <= s <= 16)
        model = ADMUNet(
            sample_size=side,
            in_channels=channels,
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=attending,
            head_channels=self.head_channels,
            norm_groups=self.norm_groups or norm_groups([self.base_channels]),
            dropout=self.dropout,
            condition_dropout=self.condition_dropout,
            prediction_type=self.prediction_type,
            **task.condition_arguments(),
        )
        return DiffusionObjective(ADMGenerator(model, default_scheduler(self.prediction_type)))
