"""Which images are to be made: the seed and guidance scale of each, and in which shard it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rcg.core.errors import UserError
from rcg.core.rng import derive_seed
from rcg.synthesis.prompts import Prompt

SCALES: dict[str, tuple[float, ...]] = {
    "small": (2.0, 3.0),
    "large": (8.0, 10.0),
    "mixed": (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0),
}
"""The guidance scales of StableRep's experiments (arXiv 2306.00984): small is the best for it, large for SimCLR."""
MOST_SCALES = 1000


def parse_scales(words: Sequence[str]) -> tuple[float, ...]:
    """Guidance scales from words: `small`, `large`, `mixed`, numbers, and ranges `2:10` or `2:3:0.25` (with a step).

    Raises:
        UserError: anything else, or numbers below 0.
    """
    found: list[float] = []
    for word in words:
        if word in SCALES:
            found += SCALES[word]
            continue
        try:
            numbers = [float(part) for part in word.split(":")]
            if not all(math.isfinite(n) and 0 <= n <= 1000 for n in numbers):
                raise ValueError
            if len(numbers) == 1:
                found += numbers
                continue
            start, stop, step = (*numbers, 1.0) if len(numbers) == 2 else numbers
            steps = math.floor((stop - start) / step + 1e-9)
            if steps < 0 or steps >= MOST_SCALES:
                raise ValueError
            found += [round(start + i * step, 9) for i in range(steps + 1)]
        except (ValueError, ArithmeticError):
            raise UserError(
                f"--guidance-scales {word!r} is neither a number from 0 to 1000, nor a range such as 2:10 or 2:3:0.25, nor "
                f"one of {', '.join(SCALES)}."
            ) from None
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Picture:
    """One image to be made.

    Attributes:
        key: number of its prompt.
        number: among the images of that prompt, from 0.
        seed: of its random numbers.
        scale: guidance; None is the pipeline's own.
    """

    key: int
    number: int
    seed: int
    scale: float | None


@dataclass(frozen=True)
class Plan:
    """All images of a run. An image follows from its prompt, its number and the seed; not from the other prompts.

    Attributes:
        prompts: what is drawn.
        count: images of each prompt.
        scales: guidance scales, in turn; empty: the pipeline's own.
        seed: of the run.
        per_shard: prompts in a shard.
    """

    prompts: Sequence[Prompt]
    count: int
    scales: tuple[float, ...]
    seed: int
    per_shard: int

    @property
    def num_shards(self) -> int:
        """Shards of the whole run."""
        return -(-len(self.prompts) // self.per_shard)

    def keys(self, shard: int) -> range:
        """Numbers of the prompts in a shard."""
        return range(shard * self.per_shard, min(len(self.prompts), (shard + 1) * self.per_shard))

    def pictures(self, key: int) -> list[Picture]:
        """The images of a prompt. It begins anywhere among the scales, so that all are used alike."""
        number = self.prompts[key].number
        return [
            Picture(
                key,
                j,
                derive_seed(self.seed, number, j),
                self.scales[(number + j) % len(self.scales)] if self.scales else None,
            )
            for j in range(self.count)
        ]
