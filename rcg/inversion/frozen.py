"""What inversion asks of a frozen generator, whatever it is: a loss in its condition, and images from conditions."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from rcg.data.build import CacheField

Kind = Literal["stable-diffusion", "rcg"]


class FrozenGenerator(Protocol):
    """A generator whose weights stay, and whose conditions are learned.

    Attributes:
        kind: of generator.
        shape: of a condition.
        image_size: side of its images, in pixels.
        default_lr: Adam's learning rate where none is given.
        beginning: where conditions begin, in a word.
        fields: what is computed from each image once and cached, by name.
    """

    kind: Kind
    shape: tuple[int, ...]
    image_size: int
    default_lr: float
    beginning: str
    fields: dict[str, CacheField]

    def identity(self) -> str:
        """A short hash of all that the loss depends on: weights, noise schedule."""
        ...

    def prepare(self, device: torch.device, bf16: bool, checkpointing: bool) -> None:
        """Move the models to the device and set the arithmetic; `UserError` for what the model cannot do."""
        ...

    def start(self, batch: dict[str, Tensor], seeds: list[int]) -> Tensor:
        """Where the conditions of B images begin, float32 [B, *shape], from their cached fields and their own seeds."""
        ...

    def loss(self, batch: dict[str, Tensor], conditions: Tensor, seeds: list[int], step: int) -> Tensor:
        """The training loss at one step (from 0), summed over the B images, with gradient to `conditions` [B, *shape].

        Times and noise follow from `seeds` (one an image, the same at every step) and `step`.
        """
        ...

    def draw(self, conditions: Tensor, scales: list[float], seeds: list[int]) -> Tensor:
        """Images float32 [B, 3, S, S] in [0, 1] from conditions [B, *shape], guidance scales and seeds of B images."""
        ...

    def drawing(self) -> dict[str, object]:
        """The settings of `draw` (JSON values)."""
        ...
