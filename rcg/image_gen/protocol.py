"""The one protocol through which pipeline, training and commands see an image generator, whatever its family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.precision import Precision
from rcg.core.rng import Noise

Condition = Literal["representation", "class", "none"]


@dataclass(frozen=True)
class Request:
    """What is to be drawn, and how.

    Attributes:
        noise: random numbers of B images.
        representations: float [B, D] for condition "representation".
        class_labels: int64 [B] for condition "class".
        num_inference_steps, guidance_scale, temperature: see `RCGPipeline`; no temperature where the family has none.
        exact: the arithmetic of the family's published sampler, instead of the quick way.
        precision: of the model.
        callback: called as `callback(i, codes)` after step i (from 0) with what would be decoded if it were the last.
    """

    noise: Noise
    representations: Tensor | None
    class_labels: Tensor | None
    num_inference_steps: int
    guidance_scale: float
    temperature: float | None
    exact: bool = False
    precision: Precision = "fp32"
    callback: Callable[[int, Tensor], None] | None = None


class ImageGenerator(Protocol):
    """One family's model, its scheduler and its tokenizer, ready to draw: condition → codes → images.

    *Codes* are what the model generates and the tokenizer decodes: token ids, latents, or the pixels themselves.
    """

    scheduler: Any
    tokenizer: Any
    """Frozen; None for codes that need none, or where only training is wanted."""

    @property
    def condition(self) -> Condition:
        """What images are made from."""
        ...

    @property
    def representation_dim(self) -> int | None:
        """D of condition "representation"."""
        ...

    @property
    def num_classes(self) -> int:
        """Classes of condition "class", else 0."""
        ...

    @property
    def guidable(self) -> bool:
        """Whether the model knows a null condition."""
        ...

    @property
    def decodable(self) -> bool:
        """Whether codes can be made into images: not where a tokenizer is needed and there is none."""
        ...

    def check(self) -> None:
        """Raise `UserError` if model, scheduler and tokenizer do not belong together."""
        ...

    def defaults(self) -> dict[str, Any]:
        """The scheduler's own `num_inference_steps` and `temperature` (None where the family has none)."""
        ...

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `UserError` for settings that this family cannot use."""
        ...

    def generate(self, request: Request) -> Tensor:
        """Draw codes [B, …] on the model's device."""
        ...

    def decode(self, codes: Tensor, precision: Precision) -> Tensor:
        """Images, float32 [B, 3, H, W] in [0, 1], of codes [B, …]."""
        ...


@dataclass(frozen=True)
class Task:
    """What a new model is to learn, as far as the data says.

    Attributes:
        condition: what images are made from.
        codes_shape: of one sample's codes.
        representation_dim: D for condition "representation".
        num_classes: classes of the data for condition "class".
        tokenizer: frozen, that made the codes; None where codes are at hand and only training is wanted.
    """

    condition: Condition
    codes_shape: tuple[int, ...]
    representation_dim: int | None = None
    num_classes: int | None = None
    tokenizer: nn.Module | None = None


class Objective(Protocol):
    """What training asks of a family: the loss of a batch of codes, and figures on held-out ones. An `nn.Module`, too.

    Attributes:
        generator: the family's model under training, with its scheduler and, where there is one, its tokenizer.
        model: what is trained, and exported with the generator's scheduler.
        field: the name of the codes in a batch and in a cache.
    """

    generator: ImageGenerator
    model: Any
    field: str

    def encode(self, images: Tensor) -> Tensor:
        """Codes [B, …] of images float [B, 3, H, W] in [0, 1], by the frozen tokenizer; `UserError` without one."""
        ...

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for codes [B, …] that do not fit the model."""
        ...

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss` and other scalars of a batch with codes and condition."""
        ...

    def evaluate(self, batch: dict[str, Tensor], seed: int) -> dict[str, float]:
        """Figures of held-out samples, the same at every call with one seed."""
        ...

    def identity(self) -> dict[str, Any]:
        """Settings beside the model's configuration that a resumed run must share (JSON values)."""
        ...


class Recipe(Protocol):
    """A family's own flags of `rcg-train-generator`, a dataclass with a default for each."""

    def objective(self, task: Task) -> Objective:
        """A new model, ready to be trained.

        Raises:
            UserError: sizes that cannot be, or that do not fit the data.
        """
        ...


@dataclass(frozen=True)
class Family:
    """A kind of image generator.

    Attributes:
        model: class of its models.
        generator: model, scheduler and tokenizer (or None) → what draws.
        field: name of its codes in a batch and in a cache.
        schedulers: of our own, beside diffusers'.
        tokenizers: classes of the tokenizers that it works with; none if its codes are pixels.
    """

    model: type[nn.Module]
    generator: Callable[[Any, Any, nn.Module | None], ImageGenerator]
    field: str
    schedulers: tuple[type[Any], ...] = ()
    tokenizers: tuple[type[nn.Module], ...] = ()


def condition_of(batch: Mapping[str, Tensor], condition: Condition) -> dict[str, Tensor]:
    """The part of a batch that a model is conditioned on, under the names of `Request` and of the models' arguments."""
    if condition == "representation":
        return {"representations": batch["representations"]}
    if condition == "class":
        return {"class_labels": batch["labels"]}
    return {}


def check_condition(
    model: Any, representations: Tensor | None, class_labels: Tensor | None, guidance_scale: float
) -> bool:
    """Whether a generation is guided; `UserError` for a condition or guidance that the model (its config) cannot use."""
    config = model.config
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance_scale is {guidance_scale}, but it must be a number (1.0 is off).")
    if class_labels is not None and config.condition == "class":
        lowest, highest = int(class_labels.min()), int(class_labels.max())
        if lowest < 0 or highest >= config.num_classes:
            raise UserError(
                f"class label {lowest if lowest < 0 else highest} was given, but this generator knows the classes "
                f"0 to {config.num_classes - 1}."
            )
    if guidance_scale == 1.0:
        return False
    if config.condition == "none":
        raise UserError("this generator has no condition to be guided by; use guidance_scale=1.0.")
    if config.condition_dropout == 0:
        raise UserError(
            "this generator was trained with condition_dropout=0, so it cannot be guided; use guidance_scale=1.0."
        )
    if representations is None and class_labels is None:
        raise UserError(f"guidance needs a {config.condition} to be guided by; give one, or use guidance_scale=1.0.")
    return True
