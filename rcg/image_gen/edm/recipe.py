"""EDM's U-Net from nothing: the flags that are its own, and what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rcg.core.errors import UserError
from rcg.core.schema import Depth, Range, ShareBelowOne, Size

if TYPE_CHECKING:
    from rcg.image_gen.edm.objective import EDMObjective
    from rcg.image_gen.protocol import Task

ATTENDED = 16
"""EDM's."""


@dataclass
class EDMRecipe:
    """Sizes and objective of a new EDM U-Net; see `rcg.image_gen.protocol.Recipe`."""

    channels: tuple[Size, ...] = (128, 128, 128)
    """Channels of each resolution, from the images' own down, in multiples of 32 (EDM on CIFAR-10: 256 256 256)."""
    layers: Depth = 2
    """Residual blocks of each resolution (EDM: 4)."""
    attention_size: Annotated[int, Range(0, 65536)] | None = None
    """Side of the resolution that gets self-attention (default: the finest of at most 16, else the coarsest); 0 for none but
    that in the middle."""
    dropout: ShareBelowOne = 0.1
    """Dropout in the residual blocks (EDM on CIFAR-10: 0.13)."""
    condition_dropout: ShareBelowOne = 0.1
    """Share of samples trained without their condition, so that guidance works; 0 makes a model without guidance."""
    time_mean: Annotated[float, Range(-10, 10)] = 1.2
    """Times are sigmoid(mean + std x normal): EDM's P_mean, with the other sign."""
    time_std: Annotated[float, Range(0, 10, "(]")] = 1.2
    """The std of that, EDM's P_std."""

    def objective(self, task: Task) -> EDMObjective:
        """A new model, ready to be trained."""
        from rcg.image_gen.edm.objective import EDMObjective
        from rcg.image_gen.edm.unet import EDMUNet

        channels, side = task.square("images", "EDM")
        sides = [side // 2**level for level in range(len(self.channels))]
        attended = self.attention_size
        if attended is None:
            attended = next((s for s in sides if s <= ATTENDED), min(sides, default=0))
        elif attended not in (0, *sides):
            raise UserError(
                f"--attention-size is {attended}, but the resolutions have sides {', '.join(map(str, sides))}; choose one of "
                "those, or 0."
            )
        model = EDMUNet(
            image_size=side,
            in_channels=channels,
            channels=self.channels,
            layers=self.layers,
            attention_size=attended,
            dropout=self.dropout,
            condition_dropout=self.condition_dropout,
            **task.condition_arguments(),
        )
        return EDMObjective(model, self.time_mean, self.time_std)
