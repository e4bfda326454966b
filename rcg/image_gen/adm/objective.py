"""What ADM is trained to do: to tell noise from pixels, and to choose the variance of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.pictures import to_signed, to_uint8
from rcg.image_gen.adm.generator import ADMGenerator
from rcg.image_gen.adm.unet import ADMUNet
from rcg.image_gen.diffusion.generator import default_scheduler
from rcg.image_gen.diffusion.objective import NoiseObjective


class ADMObjective(NoiseObjective):
    """See `NoiseObjective`; images are bytes, and lie in [−1, 1] for the model.

    Args:
        model: what is trained.
        scheduler: exported with the model as its default sampler, and used for previews; its noise schedule is trained on.
    """

    def __init__(self, model: ADMUNet, *, scheduler: Any = None) -> None:
        super().__init__(ADMGenerator(model, scheduler or default_scheduler()), "images")

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of images float [B, 3, S, S] in [0, 1]: pixels are their own codes."""
        return to_uint8(images)

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for images of another size or type."""
        super().check_codes(codes)
        if codes.dtype != torch.uint8:
            raise UserError(f"the data's images are {codes.dtype}, but the model takes uint8; give them as bytes.")

    def data_of(self, codes: Tensor) -> Tensor:
        return to_signed(codes)
