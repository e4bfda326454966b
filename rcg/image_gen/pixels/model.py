"""What a model on pixels is, for sampling and training."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class PixelModel(Protocol):
    """x_t = t · image + (1 − t) · noise, at time t (+ condition) → the clean image. A diffusers model, too.

    Its config has `image_size`, `in_channels` and what `rcg.image_gen.conditions` asks of one.
    """

    config: Any

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def block_rows(self) -> int:
        """About so many images are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`."""
        ...

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        representations: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> Tensor:
        """[B, C, S, S] and t (one number, or [B]) → [B, C, S, S]; see `rcg.image_gen.pixel_dit.transformer.PixelDiT`."""
        ...
