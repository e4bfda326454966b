"""What families that take noise away share, whatever they predict: generators with a scheduler of diffusers, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.precision import Precision
from rcg.core.replay import replayed
from rcg.image_gen.protocol import Conditioned


class DenoisingGenerator(Conditioned):
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


def predictor(model: Any) -> Callable[[float, Tensor, Tensor | None, Tensor | None], Tensor]:
    """What a model predicts, float32, of one time t for all, x, representations and class labels; see `rcg.core.replay`."""

    def predict(t: float, x: Tensor, representations: Tensor | None, class_labels: Tensor | None) -> Tensor:
        prediction: Tensor = model(x, t, representations, class_labels)
        return prediction.float()

    return replayed(model, predict, "prediction")


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
