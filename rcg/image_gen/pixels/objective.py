"""What a generator of pixels is trained to do: flow matching, with the clean image as the prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rcg.core import draws
from rcg.core.errors import UserError
from rcg.core.pictures import to_signed, to_uint8
from rcg.core.schema import is_number
from rcg.image_gen.conditions import condition_of, dropped
from rcg.image_gen.pixels.generator import PixelGenerator
from rcg.image_gen.pixels.model import PixelModel
from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler

EVAL_BATCH = 64


class PixelObjective(nn.Module):
    """Flow matching with x-prediction and a loss on the velocity (arXiv 2511.13720, §4).

    x_t = t · x + (1 − t) · noise for an image x in [−1, 1]. The model predicts x̂(x_t, t), whose velocity differs from the
    true one by (x̂ − x) / (1 − t): loss = mean (x̂ − x)² / max(1 − t, `noise_floor`)². Times are t = sigmoid(`time_mean` +
    `time_std` · N(0, 1)); the samples of a batch are spread evenly over that distribution, which makes the gradient less
    noisy and changes nothing else. See `rcg.image_gen.protocol.Objective`.

    Args:
        model: what is trained.
        time_mean, time_std: of the normal distribution behind t; a lower mean trains more on noisier images.
        noise_floor: least 1 − t that the loss is divided by, in (0, 1].
        scheduler: exported with the model as its default sampler, and used for previews.

    Raises:
        UserError: a number out of range.
    """

    field = "images"
    grouped = False

    def __init__(
        self,
        model: PixelModel,
        time_mean: float = 0.4,
        time_std: float = 1.2,
        noise_floor: float = 0.05,
        *,
        scheduler: Any = None,
    ) -> None:
        super().__init__()
        if not is_number(time_mean) or not -10 <= time_mean <= 10:
            raise UserError(f"time_mean is {time_mean}, but it must lie in [-10, 10].")
        if not is_number(time_std) or not 0 < time_std <= 10:
            raise UserError(f"time_std is {time_std}, but it must lie in (0, 10].")
        if not is_number(noise_floor) or not 0 < noise_floor <= 1:
            raise UserError(f"noise_floor is {noise_floor}, but it must lie in (0, 1].")
        self.model = model
        self.time_mean = time_mean
        self.time_std = time_std
        self.noise_floor = noise_floor
        self.generator = PixelGenerator(model, scheduler or KarrasFlowScheduler())

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] of images float [B, 3, S, S] in [0, 1]: pixels are their own codes."""
        return to_uint8(images)

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for images of another size or type."""
        config = self.model.config
        expected = [config.in_channels, config.image_size, config.image_size]
        if list(codes.shape[1:]) != expected or codes.dtype != torch.uint8:
            raise UserError(
                f"the data's images are {codes.dtype} of shape {list(codes.shape[1:])}, but the model takes uint8 of shape "
                f"{expected}; give the data in that size."
            )

    def identity(self) -> dict[str, Any]:
        """The distribution of times, and the floor."""
        return {"times": [self.time_mean, self.time_std], "noise_floor": self.noise_floor}

    def times(self, quantiles: Tensor) -> Tensor:
        """t in [0, 1] at quantiles in [0, 1] of its distribution."""
        return torch.sigmoid(self.time_mean + self.time_std * torch.special.ndtri(quantiles))

    def forward(
        self,
        batch: dict[str, Tensor],
        times: Tensor | None = None,
        noise: Tensor | None = None,
        condition_noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            batch: `images` uint8 [B, 3, S, S]; `representations` float [B, D] or `labels` int64 [B] as the model needs.
            times, noise, condition_noise: used in place of random draws, for tests: float [B] in [0, 1]; float
                [B, 3, S, S], standard normal; float [B], the condition is dropped where it is below the model's
                `condition_dropout`.

        Returns:
            `loss`, a scalar.
        """
        config, images = self.model.config, to_signed(batch["images"])
        count, device = len(images), images.device
        if times is None:
            times = self.times(draws.stratified(count, device))
        if noise is None:
            noise = draws.normal_like(images)
        drop = dropped(config, count, device, condition_noise)
        given = condition_of(batch, config.condition)
        return {"loss": self.losses(images, times, noise, given, drop).mean()}

    def losses(
        self, images: Tensor, times: Tensor, noise: Tensor, given: dict[str, Tensor], drop: Tensor | None = None
    ) -> Tensor:
        """The loss of each sample, [B]; images in [−1, 1], `given` the condition under the names of the model's arguments."""
        noisy = torch.lerp(noise, images, times[:, None, None, None])
        clean = self.model(noisy, times, **given, drop_condition=drop)
        return (clean.float() - images).square().flatten(1).mean(dim=1) * self.weights(times)

    def weights(self, times: Tensor) -> Tensor:
        """What squared errors of the image at times [B] count: as errors of the velocity."""
        return (1 - times).clamp_min(self.noise_floor).square().reciprocal()

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Tensor], seed: int) -> dict[str, float]:
        """The loss of held-out images, at times spread evenly over their distribution, with the same noise at every call.

        Returns:
            `velocity_error`, the training loss; for a conditional model also `velocity_error_unconditional`, the same
            with the null condition (meaningful with condition dropout only).
        """
        images, given = batch["images"], condition_of(batch, self.model.config.condition)
        count, device = len(images), images.device
        times = self.times((torch.arange(count) + 0.5) / count).to(device)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed % 2**63)).to(device)
        sums = {"velocity_error": 0.0}
        if given and self.model.config.condition_dropout > 0:
            sums["velocity_error_unconditional"] = 0.0
        for some in torch.arange(count, device=device).split(EVAL_BATCH):
            part = to_signed(images[some]), times[some], noise[some]
            sums["velocity_error"] += float(self.losses(*part, {k: v[some] for k, v in given.items()}).sum())
            if "velocity_error_unconditional" in sums:
                sums["velocity_error_unconditional"] += float(self.losses(*part, {}).sum())
        return {name: value / count for name, value in sums.items()}
