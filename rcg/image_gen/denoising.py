"""What families that take noise away share, whatever they predict: generators with a scheduler of diffusers, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rcg.core.blocks import in_blocks
from rcg.core.errors import UserError
from rcg.core.precision import Precision
from rcg.core.replay import replayed
from rcg.image_gen.conditions import Guidance, check_condition, check_given
from rcg.image_gen.protocol import ImageGenerator


class DenoisingGenerator(ImageGenerator):
    """The part of `rcg.image_gen.protocol.ImageGenerator` that is the same for all of them.

    Args:
        model: in evaluation mode.
        scheduler: of diffusers; the family says of which kind.
        tokenizer: that decodes what the model makes, or None.
        guiding_model: for autoguidance.
    """

    default_steps: int
    guidance_interval: Sequence[float] = (0.0, 1.0)

    def __init__(
        self, model: Any, scheduler: Any, tokenizer: nn.Module | None = None, guiding_model: Any = None
    ) -> None:
        self.model, self.scheduler, self.tokenizer, self.guiding_model = model, scheduler, tokenizer, guiding_model

    def defaults(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "num_inference_steps": self.default_steps,
            "temperature": None,
            "guidance_schedule": "constant",
            "guidance_interval": list(self.guidance_interval),
        }

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `UserError` for a temperature, or more steps than the scheduler knows noise levels."""
        if settings.get("temperature") is not None:
            raise UserError("this image generator has no temperature; leave it out.")
        steps, most = settings["num_inference_steps"], self.scheduler.config.num_train_timesteps
        if steps is not None and steps > most:
            raise UserError(f"num_inference_steps is {steps}, but the scheduler makes {most} at most.")


class PixelCodes:
    """The part of a generator whose codes are the images themselves, uint8 [B, 3, S, S]."""

    model: Any
    tokenizer: Any

    @property
    def decodable(self) -> bool:
        """Always."""
        return True

    def check_pixels(self) -> None:
        """Raise `UserError` for a tokenizer, or images that are not RGB."""
        if self.tokenizer is not None:
            raise UserError(f"{type(self.model).__name__} makes pixels, not tokens; leave the tokenizer out.")
        if (channels := self.model.config.in_channels) != 3:
            raise UserError(f"the image generator makes images of {channels} channels, but a pipeline needs RGB.")

    def decode(self, codes: Tensor, precision: Precision = "fp32") -> Tensor:
        """See the protocol."""
        return codes.float() / 255


def _predictor(model: Any) -> Callable[[float, Tensor, Tensor | None, Tensor | None], Tensor]:
    """What a model predicts, float32, of one time t for all, x, representations and class labels; see `rcg.core.replay`."""

    def predict(t: float, x: Tensor, representations: Tensor | None, class_labels: Tensor | None) -> Tensor:
        prediction: Tensor = model(x, t, representations, class_labels)
        return prediction.float()

    return replayed(model, predict, "prediction")


class GuidedModel:
    """A model with its condition and guidance, as one function of x and time.

    Args:
        model: called as `model(x, t, representations, class_labels)`; has `config` (see `check_condition`) and `device`. In
            evaluation mode.
        representations, class_labels: of B samples, on any device, or None.
        guidance: by the null condition, or by the guiding model; where it acts, two models are evaluated.
        guiding_model: a weaker one of the same kind, for autoguidance, or None.
        rows: about so many samples are evaluated together on a CPU, see `rcg.core.blocks.in_blocks`.
        channels: guidance acts on the first so many; None: on all.

    Raises:
        UserError: a condition or guidance that the model cannot use.
    """

    def __init__(
        self,
        model: Any,
        representations: Tensor | None,
        class_labels: Tensor | None,
        guidance: Guidance,
        guiding_model: Any,
        rows: int,
        channels: int | None = None,
    ) -> None:
        given = representations, class_labels
        self.guided = check_condition(model, *given, guidance, guiding_model)
        self.guidance, self.rows, self.channels = guidance, rows, channels
        self.given = tuple(None if value is None else value.to(model.device) for value in given)
        self.predict = self.predict_weaker = _predictor(model)
        self.given_weaker: tuple[Tensor | None, ...] = (None, None)
        if guiding_model is not None:
            self.predict_weaker, self.given_weaker = _predictor(guiding_model), self.given

    def __call__(self, x: Tensor, t: float, progress: float) -> Tensor:
        """The prediction, float32 [B, C, …], at time t for x [B, C, …]; `progress` in [0, 1] as guidance counts it."""
        output = in_blocks(partial(self.predict, t), self.rows, x, *self.given)
        scale = self.guidance.at(progress)
        if not self.guided or scale == 1.0:
            return output
        weaker = in_blocks(partial(self.predict_weaker, t), self.rows, x, *self.given_weaker)
        pushed = torch.lerp(weaker[:, : self.channels], output[:, : self.channels], scale)
        return pushed if self.channels is None else torch.cat([pushed, output[:, self.channels :]], dim=1)


def time_and_condition(
    model: Any, times: Tensor, representations: Tensor | None, class_labels: Tensor | None, drop: Tensor | None
) -> Tensor:
    """A transformer's time, float [B] as it is embedded, and condition as one vector a sample, [B, width]; see its `forward`."""
    features = model.time_features(times)
    vector: Tensor = model.time_embed(features.to(model.time_embed.linear_1.weight.dtype))
    given = check_given(model.config, len(times), representations, class_labels)
    if model.condition_embed is None:
        return vector
    return vector + model.condition_embed(given, len(times), drop)


def check_sample(sample: Tensor, channels: int, side: int, what: str) -> None:
    """Raise `UserError` unless a model's input is [B, channels, side, side]; `what` it is, "images" or "latents"."""
    if sample.ndim != 4 or tuple(sample.shape[1:]) != (channels, side, side):
        raise UserError(
            f"the {what} have shape {list(sample.shape)}, but this generator needs [B, {channels}, {side}, {side}]."
        )


def check_divisible(sizes: Iterable[tuple[str, int, int, str]]) -> None:
    """Raise `UserError` for the first (name, size, part, what divides, as "4 heads do") whose part does not divide it."""
    for name, size, part, what in sizes:
        if size % part:
            raise UserError(f"{name} is {size}, which {what} not divide; choose another size.")
