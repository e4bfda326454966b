"""The one protocol through which pipeline, training and commands see an image generator, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.precision import Precision
from rcg.core.rng import Noise
from rcg.image_gen.conditions import NO_GUIDANCE, Condition, Guidance


@dataclass(frozen=True)
class Request:
    """What is to be drawn, and how.

    Attributes:
        noise: random numbers of B images.
        representations: float [B, D] for condition "representation".
        class_labels: int64 [B] for conditions "class" and "cluster".
        num_inference_steps, temperature: see `RCGPipeline`; no temperature where the family has none.
        guidance: by the null condition, or by the generator's guiding model where it has one.
        exact: the arithmetic of the family's published sampler, instead of the quick way.
        precision: of the model.
        callback: called as `callback(i, codes)` after step i (from 0) with what would be decoded if it were the last.
        watched: whether the callback looks at the codes. If not, it may be given anything, and be called for all steps at
            the end.
    """

    noise: Noise
    representations: Tensor | None
    class_labels: Tensor | None
    num_inference_steps: int
    temperature: float | None
    guidance: Guidance = NO_GUIDANCE
    exact: bool = False
    precision: Precision = "fp32"
    callback: Callable[[int, Tensor], None] | None = None
    watched: bool = True

    def shown(self, codes_of: Callable[[Tensor], Tensor]) -> Callable[[int, Tensor], None] | None:
        """The callback, for data of which `codes_of` makes codes; not where nobody looks, as that may wait for the device."""
        callback = self.callback
        if callback is None or not self.watched:
            return callback
        return lambda step, data: callback(step, codes_of(data))


class ImageGenerator(ABC):
    """One family's model, its scheduler and its tokenizer, ready to draw: condition → codes → images.

    *Codes* are what the model generates and the tokenizer decodes: token ids, latents, or the pixels themselves.
    """

    model: Any
    scheduler: Any
    tokenizer: Any
    """Frozen; None for codes that need none, or where only training is wanted."""
    guiding_model: Any = None
    """A weaker model of the same family, for autoguidance; None: guidance is by the null condition."""
    exact_steps: int | None = None
    """`num_inference_steps` of the family's published sampler; None: as many as otherwise."""

    @property
    def condition(self) -> Condition:
        """What images are made from."""
        return self.model.config.condition

    @property
    def representation_dim(self) -> int | None:
        """D of condition "representation"."""
        return self.model.config.representation_dim if self.condition == "representation" else None

    @property
    def num_classes(self) -> int:
        """Classes or clusters of conditions "class" and "cluster", else 0."""
        return int(self.model.config.num_classes) if self.condition in ("class", "cluster") else 0

    @property
    def label_counts(self) -> list[int] | None:
        """How often each class or cluster is to be drawn, relative to the others; None: all alike."""
        return self.model.config.label_counts if self.num_classes else None

    @property
    def guidable(self) -> bool:
        """Whether there is something to be guided by: a null condition, or a guiding model."""
        by_itself = self.condition != "none" and self.model.config.condition_dropout > 0
        return by_itself or self.guiding_model is not None

    @property
    @abstractmethod
    def decodable(self) -> bool:
        """Whether codes can be made into images: not where a tokenizer is needed and there is none."""

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` if model, scheduler and tokenizer do not belong together."""

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """The family's own `num_inference_steps`, `temperature` (None where it has none), `guidance_schedule` and
        `guidance_interval`."""

    @abstractmethod
    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise `UserError` for settings that this family cannot use."""

    @abstractmethod
    def generate(self, request: Request) -> Tensor:
        """Draw codes [B, …] on the model's device."""

    @abstractmethod
    def decode(self, codes: Tensor, precision: Precision) -> Tensor:
        """Images, float32 [B, 3, H, W] in [0, 1], of codes [B, …]."""


@dataclass(frozen=True)
class Task:
    """What a new model is to learn, as far as the data says.

    Attributes:
        condition: what images are made from.
        codes_shape: of one sample's codes.
        representation_dim: D for condition "representation".
        num_classes: classes or clusters of the data for conditions "class" and "cluster".
        label_counts: how often each occurs, where draws shall follow it.
        tokenizer: frozen, that made the codes; None where codes are at hand and only training is wanted.
    """

    condition: Condition
    codes_shape: tuple[int, ...]
    representation_dim: int | None = None
    num_classes: int | None = None
    label_counts: list[int] | None = None
    tokenizer: nn.Module | None = None

    def condition_arguments(self) -> dict[str, Any]:
        """Those of a model that say what images are made from."""
        return {k: getattr(self, k) for k in ("condition", "representation_dim", "num_classes", "label_counts")}

    def square(self, codes: str, family: str) -> tuple[int, int]:
        """Channels and side of the codes, "images" or "latents"; `UserError` where they are no square maps, as `family` needs."""
        if len(self.codes_shape) != 3:
            raise UserError(
                f"the {codes} have shape {list(self.codes_shape)}, but {family} takes [channels, side, side]; give an "
                "autoencoder of images."
            )
        channels, height, width = self.codes_shape
        if height != width:
            raise UserError(
                f"the {codes} are {width} x {height}, but {family} works on square ones; use square images."
            )
        return channels, width


class Objective(Protocol):
    """What training asks of a family: the loss of a batch of codes, and figures on held-out ones. An `nn.Module`, too.

    Attributes:
        generator: the family's model under training, with its scheduler and, where there is one, its tokenizer.
        model: what is trained, and exported with the generator's scheduler.
        field: the name of the codes in a batch and in a cache.
        grouped: see `rcg.training.stage.Stage`.
    """

    @property
    def generator(self) -> ImageGenerator: ...

    @property
    def model(self) -> Any: ...

    @property
    def field(self) -> str: ...

    @property
    def grouped(self) -> bool: ...

    def encode(self, images: Tensor) -> Tensor:
        """Codes [B, …] of images float [B, 3, H, W] in [0, 1], by the frozen tokenizer; `UserError` without one."""
        ...

    def check_codes(self, codes: Tensor) -> None:
        """Raise `UserError` for codes [B, …] that do not fit the model."""
        ...

    def forward(self, batch: dict[str, Tensor], *, condition_noise: Tensor | None = None) -> dict[str, Tensor]:
        """`loss` and other scalars of a batch with codes and condition.

        Args:
            batch: B samples.
            condition_noise: float [B] in place of a random draw: the condition is dropped where it is below the model's
                `condition_dropout`.
        """
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
        generator: model, scheduler, tokenizer (or None) and guiding model (or None) → what draws.
        objective: what draws → the `Objective` that its model was trained with, with the family's usual settings.
        field: name of its codes in a batch and in a cache.
        schedulers: of our own, beside diffusers'.
        tokenizers: classes of the tokenizers that it works with; none if its codes are pixels.
        blocks: of transformers over a square grid of tokens: model → its blocks, see `rcg.image_gen.alignment`.
        about: what it does, for model cards: a main clause without a full stop.
    """

    model: type[nn.Module]
    generator: Callable[[Any, Any, nn.Module | None, Any], ImageGenerator]
    objective: Callable[[Any], Any]
    field: str
    schedulers: tuple[type[Any], ...] = ()
    tokenizers: tuple[type[nn.Module], ...] = ()
    _: KW_ONLY
    blocks: Callable[[Any], list[nn.Module]] | None = None
    about: str
