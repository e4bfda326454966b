"""PixelDiT from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from rcg.core.schema import Depth, MlpRatio, Range, ShareBelowOne, Size

if TYPE_CHECKING:
    from rcg.image_gen.pixels.objective import PixelObjective
    from rcg.image_gen.protocol import Task


@dataclass
class PixelDiTRecipe:
    """Sizes and objective of a new PixelDiT; see `rcg.image_gen.protocol.Recipe`."""

    patch_size: Annotated[int, Range(2, 8)] = 4
    """Side of a patch in pixels; (image size / patch size)² tokens an image."""
    conv_channels: list[Size] = field(default_factory=list)
    """Channels of convolutional levels around the transformer, finest first: 32 64 with patches of 4 works at single and
    double pixels, too, and joins the patches; none: patches alone."""
    width: Size = 256
    """Size of the residual stream."""
    depth: Depth = 8
    """Blocks."""
    num_heads: Depth = 4
    """Attention heads."""
    mlp_ratio: MlpRatio = 4.0
    """Hidden size of the MLPs as a multiple of the width."""
    dropout: ShareBelowOne = 0.0
    """Dropout in attention and MLPs."""
    condition_dropout: ShareBelowOne = 0.1
    """Share of samples trained without their condition, so that guidance works; 0 makes a model without guidance."""
    time_mean: Annotated[float, Range(-10, 10)] = 0.4
    """Times are sigmoid(mean + std x normal); a lower mean trains more on noisier images."""
    time_std: Annotated[float, Range(0, 10, "(]")] = 1.2
    """The std of that."""
    noise_floor: Annotated[float, Range(0, 1, "(]")] = 0.05
    """Least share of noise that the loss is divided by."""

    def objective(self, task: Task) -> PixelObjective:
        """A new model, ready to be trained."""
        from rcg.image_gen.pixel_dit.transformer import PixelDiT
        from rcg.image_gen.pixels.objective import PixelObjective

        channels, side = task.square("images", "PixelDiT")
        model = PixelDiT(
            image_size=side,
            patch_size=self.patch_size,
            in_channels=channels,
            conv_channels=list(self.conv_channels),
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            condition_dropout=self.condition_dropout,
            **task.condition_arguments(),
        )
        return PixelObjective(model, self.time_mean, self.time_std, self.noise_floor)
