"""The one protocol through which pipeline, training and commands see a representation model (RDM), whatever its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from rcg.core.precision import Precision
from rcg.core.rng import Noise

ROW_BLOCK = 16
"""Rows that an MLP evaluates together on a CPU, see `rcg.core.blocks.in_blocks`."""


@dataclass(frozen=True)
class Request:
    """What is to be drawn, and how.

    Attributes:
        noise: random numbers of B representations.
        class_labels: int64 [B] for a class-conditional model; None is its null class.
        num_inference_steps: evaluations of the model; None is the method's own number.
        guidance_scale: 1.0 is off, above 1 strengthens the class (only models with a null class).
        precision: of the model.
        exact: the arithmetic of the method's published sampler, where there is one, instead of the quick way.
        blocks: whether a CPU evaluates blocks of a fixed size, so that a sample's bits do not depend on its batch; without
            them large batches are quicker.
    """

    noise: Noise
    class_labels: Tensor | None = None
    num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    precision: Precision = "fp32"
    exact: bool = False
    blocks: bool = True


class RepresentationGenerator(Protocol):
    """One method's model and its scheduler, ready to draw: noise (and class) → representations.

    The model is a diffusers one with `null_class` (the label that means "no class", or None: then it cannot be guided) and
    the keys `representation_dim`, `num_classes` (0 for an unconditional model) and `class_dropout` in its config.
    """

    model: Any
    scheduler: Any

    @property
    def exact_steps(self) -> int | None:
        """Steps of the published sampler, which `exact` asks for; None where there is none."""
        ...

    def check(self) -> None:
        """Raise `UserError` if model and scheduler do not belong together."""
        ...

    def draw(self, request: Request) -> Tensor:
        """Representations float32 [B, D] on the model's device; sample i depends on its own noise and label alone.

        Raises:
            UserError: steps, labels or guidance that the model cannot use, or results that are not finite.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What a new model is to learn, as far as the data says.

    Attributes:
        representation_dim: D.
        num_classes: 0 for an unconditional model.
        class_dropout: share of labels to train without; 0 makes no null class.
        standardized: whether each representation has mean 0 and standard deviation 1 over its own entries.
        label_counts: how often each class occurs, where draws shall follow it.
    """

    representation_dim: int
    num_classes: int = 0
    class_dropout: float = 0.0
    standardized: bool = False
    label_counts: list[int] | None = None


class Objective(Protocol):
    """What training asks of a method: what it takes from the data first, and the loss of a batch. An `nn.Module`, too.

    Attributes:
        rdm: the model: trained, averaged, exported with the generator's scheduler.
        fit_samples: representations that `fit` wants to see, 0 if there is nothing to fit.
    """

    rdm: Any
    fit_samples: int

    @property
    def generator(self) -> RepresentationGenerator:
        """The model under training with its default scheduler."""
        ...

    def fit(self, representations: Tensor) -> None:
        """Compute what training and sampling need to know of the data from [N, D], and keep it in persistent buffers."""
        ...

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`loss` and other scalars of a batch with "representations" [B, D] (and "labels" [B] if class-conditional)."""
        ...

    def evaluate(self, representations: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Figures of held-out representations [N, D], `val_loss` among them, the same at every call."""
        ...

    def reconstruct(self, representations: Tensor) -> Tensor | None:
        """What is left of real representations [N, D] in the method's own coding; None for a method that codes nothing."""
        ...

    def identity(self) -> dict[str, Any]:
        """Settings beside the model's configuration that a resumed run must share (JSON values)."""
        ...


class Recipe(Protocol):
    """A method's own flags of `rcg-train-rdm`, a dataclass with a default for each."""

    def objective(self, task: Task) -> Objective:
        """A new model, ready to be trained.

        Raises:
            UserError: sizes that cannot be, or that do not fit the data.
        """
        ...


@dataclass(frozen=True)
class Method:
    """A kind of RDM.

    Attributes:
        model: class of its models.
        generator: model and scheduler → what draws.
        schedulers: of our own, beside diffusers'.
        about: what it is, for model cards: a noun with its article.
    """

    model: type[nn.Module]
    generator: Callable[[Any, Any], RepresentationGenerator]
    schedulers: tuple[type[Any], ...] = ()
    _: KW_ONLY
    about: str
