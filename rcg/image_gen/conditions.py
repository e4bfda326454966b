"""What images are made from, in every family: the kinds of condition, their embeddings, and guidance by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rcg.core import draws
from rcg.core.errors import UserError
from rcg.core.schema import problem

Condition = Literal["representation", "class", "cluster", "none"]
"""A cluster is a class that k-means found among representations, see `rcg.data.clusters`: for a model they are the same."""
GuidanceSchedule = Literal["constant", "linear", "cosine"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Guidance:
    """How far, and when, a prediction c with the condition is pushed away from a weaker one u: u + s · (c − u).

    The weaker one is the model's own without its condition (classifier-free, arXiv 2207.12598), or that of a guiding
    model, smaller or less trained, with the same condition (autoguidance, arXiv 2406.02507).

    Attributes:
        scale: the largest s; 1.0 is off.
        schedule: how s grows from 1 with the progress p of a generation: at once, with p (MAGE, RCG §3.4), or with
            (1 − cos πp) / 2.
        interval: (low, high) in [0, 1], the progress at which guidance acts at all (arXiv 2404.07724).

    Raises:
        UserError: a number out of range, or an unknown schedule.
    """

    scale: float = 1.0
    schedule: GuidanceSchedule = "constant"
    interval: Interval = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"guidance_scale is {self.scale}, but it must be a number (1.0 is off).")
        if found := problem(self.schedule, GuidanceSchedule, "guidance_schedule"):
            raise UserError(f"{found}.")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"the guidance interval is [{low}, {high}], but it must lie in [0, 1], its lower end first."
            )

    @property
    def on(self) -> bool:
        """Whether there is any."""
        return self.scale != 1.0

    def at(self, progress: float) -> float:
        """s at a progress in [0, 1]: 0 where nothing is known of the image yet, 1 where it is finished."""
        if not self.interval[0] <= progress <= self.interval[1]:
            return 1.0
        shares = {"constant": 1.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}
        return 1.0 + (self.scale - 1.0) * shares[self.schedule]


NO_GUIDANCE = Guidance()


def condition_of(batch: Mapping[str, Tensor], condition: Condition) -> dict[str, Tensor]:
    """The part of a batch that a model is conditioned on, under the names of `Request` and of the models' arguments."""
    if condition == "representation":
        return {"representations": batch["representations"]}
    if condition in ("class", "cluster"):
        return {"class_labels": batch["labels" if condition == "class" else "clusters"]}
    return {}


def dropped(config: Any, count: int, device: torch.device, noise: Tensor | None = None) -> Tensor | None:
    """Which of B training samples lose their condition, bool [B]; None where a model (its config) never loses it.

    Args:
        config: `condition` and `condition_dropout`.
        count: B.
        device: of the result.
        noise: float [B] in place of a random draw.
    """
    if config.condition == "none" or config.condition_dropout == 0:
        return None
    return (draws.uniform((count,), device) if noise is None else noise) < config.condition_dropout


def check_condition(
    model: Any,
    representations: Tensor | None,
    class_labels: Tensor | None,
    guidance: Guidance,
    guiding_model: Any = None,
) -> bool:
    """Whether a generation is guided; `UserError` for a condition or guidance that the model (its config) cannot use."""
    config = model.config
    if class_labels is not None and config.condition in ("class", "cluster"):
        lowest, highest = int(class_labels.min()), int(class_labels.max())
        if lowest < 0 or highest >= config.num_classes:
            raise UserError(
                f"{config.condition} label {lowest if lowest < 0 else highest} was given, but this generator knows 0 to "
                f"{config.num_classes - 1}."
            )
    if not guidance.on:
        return False
    if guiding_model is not None:
        return True
    if config.condition == "none":
        raise UserError(
            "this generator has no condition to be guided by; use guidance_scale=1.0, or give a guiding model."
        )
    if config.condition_dropout == 0:
        raise UserError(
            "this generator was trained with condition_dropout=0, so it cannot be guided; use guidance_scale=1.0."
        )
    if representations is None and class_labels is None:
        raise UserError(f"guidance needs a {config.condition} to be guided by; give one, or use guidance_scale=1.0.")
    return True


def check_given(
    config: Any, batch_size: int, representations: Tensor | None, class_labels: Tensor | None
) -> Tensor | None:
    """The condition among a model's arguments, None for the null one.

    Args:
        config: of a model: `condition`, `representation_dim`, `condition_dropout`.
        batch_size: B.
        representations: [B, D] or None.
        class_labels: [B] or None, classes or clusters.

    Raises:
        UserError: a condition of another kind or shape, or none for a model that does not know the null condition.
    """
    kind = config.condition
    wanted = "representations" if kind == "representation" else "class_labels"
    given = {"representations": representations, "class_labels": class_labels}
    for name, value in given.items():
        if value is not None and (name != wanted or kind == "none"):
            raise UserError(
                f"{name.replace('_', ' ')} were given, but this generator was trained with condition {kind!r}; leave "
                "them out or load another generator."
            )
    value = given[wanted]
    if value is None:
        if kind != "none" and config.condition_dropout == 0:
            raise UserError(
                f"this generator has no null {kind} (condition_dropout is 0); give {wanted.replace('_', ' ')}."
            )
        return None
    expected = (batch_size, config.representation_dim) if kind == "representation" else (batch_size,)
    if tuple(value.shape) != expected:
        raise UserError(
            f"{wanted.replace('_', ' ')} have shape {tuple(value.shape)}, but this generator needs {expected}."
        )
    return value


def check_sizes(condition: Condition, representation_dim: int | None, num_classes: int | None) -> None:
    """Raise `UserError` for a new model whose condition's size is not given."""
    if condition == "representation" and representation_dim is None:
        raise UserError("condition 'representation' needs representation_dim, the size of a representation.")
    if condition in ("class", "cluster") and not num_classes:
        raise UserError(f"condition {condition!r} needs num_classes, the number of these.")


class RepresentationToken(nn.Module):
    """Representations as they are; with a learned null representation, which stays as it is without `has_null`."""

    def __init__(self, representation_dim: int, has_null: bool = True) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(1, representation_dim), requires_grad=has_null)

    def forward(self, given: Tensor | None, batch_size: int, drop: Tensor | None) -> Tensor:
        """given [B, D] → [B, D]; the null one stands in where `drop`, bool [B], and for None."""
        null = self.null.expand(batch_size, -1)
        if given is None:
            return null
        given = given.to(null.dtype)
        return given if drop is None else torch.where(drop[:, None], null, given)


class RepresentationEmbedding(RepresentationToken):
    """Representations → vectors that a model adds to its embedded time; the null one stands in before the projection."""

    def __init__(self, representation_dim: int, width: int, has_null: bool = True) -> None:
        super().__init__(representation_dim, has_null)
        self.proj = nn.Linear(representation_dim, width)

    def forward(self, given: Tensor | None, batch_size: int, drop: Tensor | None) -> Tensor:
        """given [B, D] → [B, width], else as above."""
        return self.proj(super().forward(given, batch_size, drop))


class ClassEmbedding(nn.Embedding):
    """Labels → vectors that a model adds to its embedded time; the last row is the null class, if there is one."""

    def __init__(self, num_classes: int, width: int, has_null: bool) -> None:
        super().__init__(num_classes + has_null, width)

    def forward(self, given: Tensor | None, batch_size: int, drop: Tensor | None) -> Tensor:  # type: ignore[override]
        """given int64 [B] → [B, width]; the null class stands in where `drop`, bool [B], and for None."""
        null = torch.full((batch_size,), self.num_embeddings - 1, device=self.weight.device)
        if given is None:
            given = null
        elif drop is not None:
            given = torch.where(drop, null, given)
        return super().forward(given)


def condition_embedding(
    condition: Condition, representation_dim: int | None, num_classes: int | None, width: int, has_null: bool
) -> nn.Module | None:
    """The embedding of a new model's condition, see the two classes above; None for condition "none".

    Raises:
        UserError: the condition's size is not given.
    """
    check_sizes(condition, representation_dim, num_classes)
    if representation_dim is not None and condition == "representation":
        return RepresentationEmbedding(representation_dim, width, has_null)
    if num_classes and condition in ("class", "cluster"):
        return ClassEmbedding(num_classes, width, has_null)
    return None
