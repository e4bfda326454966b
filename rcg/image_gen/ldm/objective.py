"""What LDM is trained to do: to tell noise from latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rcg.image_gen.diffusion.objective import NoiseObjective
from rcg.image_gen.ldm.generator import LDMGenerator, default_scheduler
from rcg.image_gen.ldm.unet import LDMUNet


class LDMObjective(NoiseObjective):
    """See `NoiseObjective`.

    Args:
        model: what is trained.
        scheduler: exported with the model as its default sampler, and used for previews; its noise schedule is trained on.
        tokenizer: the frozen autoencoder; needed for images, and for previews.
    """

    generator: LDMGenerator

    def __init__(self, model: LDMUNet, *, scheduler: Any = None, tokenizer: nn.Module | None = None) -> None:
        super().__init__(LDMGenerator(model, scheduler or default_scheduler(), tokenizer), "latents")

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images; see the protocol."""
        return self.generator.encode(images)
