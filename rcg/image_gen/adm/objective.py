"""What ADM is trained to do: to tell noise from pixels, and to choose the variance of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.image_gen.diffusion.objective import DiffusionObjective


class ADMObjective(DiffusionObjective):
    """See `DiffusionObjective`; images are bytes."""

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for images of another size or type."""
        super().check_codes(codes)
        if codes.dtype != torch.uint8:
            raise UserError(f"the data's images are {codes.dtype}, but the model takes uint8; give them as bytes.")
