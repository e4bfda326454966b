"""What is drawn from a table of conditions: which source, which partner, how much noise, which guidance. Arithmetic only.

Every choice follows from the seed, the class, the position within the class and the attempt; so image 7 of class 3 is one
image, whoever draws it and in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.rng import Noise, derive_seed

Partners = Literal["class", "any"]
_CHOICES, _NOISE, _IMAGE = 21, 22, 23
"""Names of random streams."""


@dataclass(frozen=True)
class Variation:
    """How new conditions are made from those of the table: (1 − α) · c + α · partner + λ · ε, ε standard normal.

    Attributes:
        noise: values of λ; each image draws one of them.
        interpolation: values of α in [0, 1], the partner's share; the same.
        guidance: guidance scales, 1.0 is off; the same.
        partners: of the same class, or any.

    Raises:
        UserError: a list without values, or a value out of range.
    """

    noise: tuple[float, ...] = (0.1,)
    interpolation: tuple[float, ...] = (0.0,)
    guidance: tuple[float, ...] = (1.0,)
    partners: Partners = "class"

    def __post_init__(self) -> None:
        for name, values, high in (
            ("noise", self.noise, math.inf),
            ("interpolation", self.interpolation, 1.0),
            ("guidance", self.guidance, math.inf),
        ):
            if not values:
                raise UserError(f"{name} is an empty list; give one value or more.")
            if bad := [v for v in values if not (0 <= v <= high and math.isfinite(v))]:
                raise UserError(f"{name} is {bad[0]}, but it must lie in [0, {'∞)' if high == math.inf else '1]'}.")
        if self.partners not in get_args(Partners):
            raise UserError(f"partners is {self.partners!r}, but it must be 'class' or 'any'.")


@dataclass(frozen=True)
class Place:
    """One image of a set that is to be made.

    Attributes:
        label: of its class; None in a set without classes.
        position: within its class, from 0.
        attempt: from 0; a filter may ask for further ones.
    """

    label: int | None
    position: int
    attempt: int = 0

    def seed(self, seed: int, stream: int) -> int:
        """The seed of one of its random streams."""
        label = 0 if self.label is None else self.label + 1
        return derive_seed(seed, stream, label, self.position, self.attempt)


@dataclass(frozen=True)
class Choice:
    """What one image is made from.

    Attributes:
        place: which image it is.
        source: row of the table.
        partner: row of the table, or None where α is 0.
        interpolation, noise, guidance: α, λ and the scale.
        noise_seed, image_seed: of ε, and of the generator's own random numbers.
    """

    place: Place
    source: int
    partner: int | None
    interpolation: float
    noise: float
    guidance: float
    noise_seed: int
    image_seed: int


class Chooser:
    """Choices from a table.

    Args:
        count: rows of the table.
        labels: int64 [count] or None.
        variation: how conditions vary.
        seed: of all choices.
        within: rows that may be sources and partners (say, the 1 % that are real data); None: all.

    Raises:
        UserError: partners of one class are asked for, but there are no labels, or a class has one image only.
    """

    def __init__(
        self,
        count: int,
        labels: np.ndarray | None,
        variation: Variation,
        seed: int,
        within: Sequence[int] | None = None,
    ) -> None:
        rows = np.arange(count) if within is None else np.unique(np.asarray(within, np.int64))
        if not len(rows) or rows[0] < 0 or rows[-1] >= count:
            raise UserError(f"rows of a table of {count} images were chosen that it does not have, or none at all.")
        self.rows, self.variation, self.seed = rows, variation, seed
        self.of_class: dict[int | None, np.ndarray] = {None: rows}
        if labels is not None:
            found = np.asarray(labels)[rows]
            self.of_class = {int(label): rows[found == label] for label in np.unique(found)}
        if max(variation.interpolation) > 0:
            self._check_partners(labels)

    def _check_partners(self, labels: np.ndarray | None) -> None:
        if self.variation.partners == "any":
            if len(self.rows) < 2:
                raise UserError("interpolation needs two images at least; add some, or take interpolation 0.")
            return
        if labels is None:
            raise UserError(
                "interpolation needs partners of the same class, but the images have no labels; take partners 'any', or "
                "interpolation 0."
            )
        if lonely := [label for label, rows in self.of_class.items() if len(rows) < 2]:
            raise UserError(
                f"class {lonely[0]} has a single image and so no partner to interpolate with; take partners 'any', or "
                "interpolation 0."
            )

    @property
    def classes(self) -> list[int | None]:
        """Classes that have images; [None] without labels."""
        return list(self.of_class)

    def choose(self, place: Place) -> Choice:
        """What an image is made from. First attempts take the images of a class in turn, further ones any of them."""
        rng = np.random.default_rng(place.seed(self.seed, _CHOICES))
        rows, variation = self.of_class[place.label], self.variation
        at = place.position % len(rows) if place.attempt == 0 else int(rng.integers(len(rows)))
        source = int(rows[at])
        noise, interpolation, guidance = (
            float(values[int(rng.integers(len(values)))])
            for values in (variation.noise, variation.interpolation, variation.guidance)
        )
        partner = None
        if interpolation > 0:
            others = self.rows if variation.partners == "any" else rows
            others = others[others != source]
            partner = int(others[int(rng.integers(len(others)))])
        seeds = place.seed(self.seed, _NOISE), place.seed(self.seed, _IMAGE)
        return Choice(place, source, partner, interpolation, noise, guidance, *seeds)

    def conditions(self, table: np.ndarray, choices: Sequence[Choice]) -> Tensor:
        """The conditions float32 [B, *shape] of choices from the table [count, *shape]."""
        sources = torch.from_numpy(np.array(table[[c.source for c in choices]], np.float32))
        partners = [c.source if c.partner is None else c.partner for c in choices]
        others = torch.from_numpy(np.array(table[partners], np.float32))
        wide = (-1, *[1] * (sources.ndim - 1))
        share = torch.tensor([c.interpolation for c in choices]).view(wide)
        noise = torch.tensor([c.noise for c in choices]).view(wide)
        drawn = Noise([c.noise_seed for c in choices]).normal(0, sources[0].numel()).view_as(sources)
        return torch.lerp(sources, others, share) + noise * drawn
