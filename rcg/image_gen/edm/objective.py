"""What EDM is trained to do: to denoise at log-normal noise levels, each weighted by what it can learn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rcg.image_gen.edm.unet import SIGMA_DATA, EDMUNet
from rcg.image_gen.pixels.objective import PixelObjective

TIME_MEAN, TIME_STD = 1.2, 1.2
"""EDM's ln σ ~ N(−1.2, 1.2²) in the time t = 1 / (1 + σ) = sigmoid(−ln σ)."""
NOISE_FLOOR = 1e-3


class EDMObjective(PixelObjective):
    """λ(σ) · (D − image)² with λ = (σ² + σ_data²) / (σ · σ_data)² (arXiv 2206.00364, equation 8 and table 1).

    Args:
        model: what is trained.
        time_mean, time_std: of the normal distribution behind t, see `PixelObjective`; EDM's P_mean and P_std.
        scheduler: exported with the model.
    """

    def __init__(
        self, model: EDMUNet, time_mean: float = TIME_MEAN, time_std: float = TIME_STD, *, scheduler: Any = None
    ) -> None:
        super().__init__(model, time_mean, time_std, NOISE_FLOOR, scheduler=scheduler)

    def weights(self, times: Tensor) -> Tensor:
        """λ at times [B], with 1 − t no less than the noise floor."""
        rest = (1 - times).clamp_min(self.noise_floor)
        return (rest.square() + (SIGMA_DATA * times).square()) / (rest * SIGMA_DATA).square()
