"""From conditions to code ids: the loop around `MageTransformer` and `MaskGITScheduler`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rcg.core.blocks import in_blocks, rows_of_block
from rcg.core.errors import UserError
from rcg.core.replay import replayed
from rcg.core.rng import Noise
from rcg.image_gen.conditions import NO_GUIDANCE, Guidance, check_condition, check_given
from rcg.image_gen.mage.reuse import BLOCK_TOKENS, ReusingEvaluator, places_of
from rcg.image_gen.mage.scheduler import Generators, MaskGITScheduler, MaskGITSchedulerOutput, check_finite
from rcg.image_gen.mage.transformer import MageTransformer

EVALUATE_SHARE = 1 / 16
"""In the quick way, the model is evaluated when at least this share of all tokens has been revealed since it last was;
until then (the first steps of a cosine schedule reveal few) steps draw from the logits at hand."""
REFRESHES = 5
"""How often in a generation the quick way evaluates all tokens anew."""
PART_LOGITS = 2**22
"""On a CPU so many logits are kept at a time (of all tokens of some images), lest what a step computes of them be gigabytes."""
GUIDE_EVERY = 2
"""In the quick way, every so many evaluations the model is evaluated without its condition, too; the difference that
this makes to the logits serves until the next time."""


@torch.no_grad()
def generate_tokens(
    model: MageTransformer,
    scheduler: MaskGITScheduler,
    *,
    batch_size: int,
    representations: Tensor | None = None,
    class_labels: Tensor | None = None,
    num_inference_steps: int | None = None,
    guidance: Guidance = NO_GUIDANCE,
    guiding_model: MageTransformer | None = None,
    temperature: float | None = None,
    generator: Generators = None,
    exact: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw images as grids of code ids, starting from all tokens masked (RCG §3.3, §3.4).

    With a `Noise` or one generator a sample, a sample's ids do not depend on the batch it is drawn in.

    Args:
        model: in eval mode, or dropout will act.
        scheduler: its steps are set here.
        batch_size: B, number of images.
        representations: float [B, D] on any device, for a representation-conditional model.
        class_labels: int64 [B] in [0, num_classes), for a class-conditional model.
        num_inference_steps: T, at most the number of tokens; None is the scheduler's default.
        guidance: by the null condition, or by the guiding model; the reference's has a linear schedule.
        guiding_model: a weaker MAGE for the same tokens, in eval mode.
        temperature: choice temperature, from 0 up; None is the scheduler's default.
        generator: a `Noise`, one CPU generator a sample, or one for the batch, or None.
        exact: evaluate every token at every step, as the reference does, instead of reusing (see `mage.reuse`).
        callback: called as `callback(i, ids)` after step i (from 0) with the drawn ids so far, int64 [B, h, w].

    Returns:
        int64 [B, h, w], code ids in [0, num_codes), on the model's device.

    Raises:
        UserError: a condition is missing or does not fit, guidance is asked of a model that cannot be guided, or the
            number of steps cannot be used.
    """
    device = model.device
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, but it must be above 0.")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}, but it must be a number from 0 up.")
    guided = check_condition(model, representations, class_labels, guidance, guiding_model)
    check_given(model.config, batch_size, representations, class_labels)
    representations = None if representations is None else representations.to(device)
    class_labels = None if class_labels is None else class_labels.to(device)
    scheduler.set_timesteps(num_inference_steps)
    counts = scheduler.masked_counts(model.num_tokens)
    scales = [guidance.at(scheduler.progress(step)) for step in range(len(counts))]
    weaker = (guiding_model or model) if guided else None
    same = (representations, class_labels) if guiding_model is not None else (None, None)
    drawing = _Drawing(model, weaker, scheduler, counts, scales, temperature, exact)
    if callback is None and isinstance(generator, Noise) and type(scheduler) is MaskGITScheduler:

        def draw(seeds: Tensor, *given: Tensor | None) -> tuple[Tensor, Tensor]:
            return drawing.run(len(seeds), (given[0], given[1]), (given[2], given[3]), Noise.of(seeds))

        others = [weaker] if weaker is not None and weaker is not model else []
        quick = replayed(model, draw, drawing.key, others)
        drawn, largest = quick(generator.seeds, representations, class_labels, *same)
    else:
        drawn, largest = drawing.run(batch_size, (representations, class_labels), same, generator, callback)
    check_finite(largest)
    return _grid(drawn)


Conditions = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Drawing:
    """What is known of a generation before it begins, and its steps, which do not wait for the device.

    Attributes:
        model, weaker: the latter for guidance, or None.
        scheduler: with its steps set.
        counts: how many tokens are masked before each step.
        scales: of guidance, a step.
        temperature, exact: see `generate_tokens`.
    """

    model: MageTransformer
    weaker: MageTransformer | None
    scheduler: MaskGITScheduler
    counts: list[int]
    scales: list[float]
    temperature: float | None
    exact: bool

    @property
    def key(self) -> tuple[object, ...]:
        """All of it but the models."""
        settings = (self.temperature, self.exact, self.weaker is self.model, str(dict(self.scheduler.config)))
        return ("tokens", tuple(self.counts), tuple(self.scales), *settings)

    def run(
        self,
        batch_size: int,
        conditions: Conditions,
        weaker_conditions: Conditions,
        generator: Generators,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All steps.

        Args:
            batch_size: B.
            conditions: representations and class labels, each or None.
            weaker_conditions: those of the weaker model.
            generator, callback: see `generate_tokens`.

        Returns:
            the drawn ids int64 [B, N], and the largest magnitude among the last logits, NaN if there is one.
        """
        rows = self._rows_of_part(batch_size) if isinstance(generator, Noise) else batch_size
        parts = [
            self._steps(
                min(rows, batch_size - start),
                _cut(conditions, start, rows),
                _cut(weaker_conditions, start, rows),
                Noise.of(generator.seeds[start : start + rows]) if isinstance(generator, Noise) else generator,
            )
            for start in range(0, batch_size, rows)
        ]
        for timestep, outputs in enumerate(zip(*parts, strict=True)):
            ids = torch.cat([drawn for drawn, _ in outputs])
            if callback is not None:
                callback(timestep, _grid(ids))
        return ids, torch.stack([logits.abs().amax() for _, logits in outputs]).amax()

    def _rows_of_part(self, batch_size: int) -> int:
        """Images that go through a step together; whole blocks, see `rcg.core.blocks`."""
        tokens, device = self.model.num_tokens, self.model.device
        some, block = PART_LOGITS // (tokens * self.model.config.num_codes), BLOCK_TOKENS // tokens
        return max(rows_of_block(rows, batch_size, device) for rows in (some, block))

    def _steps(
        self, batch_size: int, conditions: Conditions, weaker_conditions: Conditions, generator: Generators
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """After each step the drawn ids int64 [B, N], and the logits of those that were masked."""
        config, device, scheduler = self.model.config, self.model.device, self.scheduler
        evaluator = _Exact if self.exact else ReusingEvaluator
        conditional = evaluator(self.model, *conditions, batch_size)
        weaker = None if self.weaker is None else evaluator(self.weaker, *weaker_conditions, batch_size)
        evaluated = range(len(self.counts)) if self.exact else _evaluated_steps(self.counts)
        refresh_every = math.ceil(len(evaluated) / REFRESHES)
        contrasted = _contrasted_steps(evaluated if self.exact else evaluated[::GUIDE_EVERY], self.scales)
        ids = torch.full((batch_size, self.model.num_tokens), config.mask_token_id, device=device)
        with_condition, difference = _Kept(), _Kept()
        for timestep, count in enumerate(self.counts):
            masked = places_of(ids == config.mask_token_id, count)
            if timestep in evaluated:
                number = evaluated.index(timestep)
                refresh = number % refresh_every == 0
                with_condition.keep(masked, conditional(ids, masked, refresh).float())
                if weaker is not None and timestep in contrasted:
                    difference.keep(masked, with_condition.values - weaker(ids, masked, refresh).float())
            logits, scale = with_condition.at(masked), self.scales[timestep]
            if weaker is not None and scale != 1.0:
                logits = logits.add(difference.at(masked), alpha=scale - 1.0)
            out = scheduler.step(logits, timestep, ids, generator, self.temperature, positions=masked)
            assert isinstance(out, MaskGITSchedulerOutput)
            ids = out.prev_sample
            yield out.pred_original_sample, logits


def _cut(conditions: Conditions, start: int, rows: int) -> Conditions:
    first, second = (None if given is None else given[start : start + rows] for given in conditions)
    return first, second


def _evaluated_steps(counts: Sequence[int]) -> list[int]:
    """At which steps the quick way evaluates the model; `counts` are the tokens masked at each, the first all of them."""
    steps = [0]
    for step, count in enumerate(counts):
        if counts[steps[-1]] - count >= counts[0] * EVALUATE_SHARE:
            steps.append(step)
    return steps


def _contrasted_steps(candidates: Sequence[int], scales: Sequence[float]) -> list[int]:
    """At which steps the weaker prediction is needed: the `candidates` whose difference serves a step that is guided."""
    ends = [*candidates[1:], len(scales)]
    return [start for start, end in zip(candidates, ends, strict=True) if any(s != 1.0 for s in scales[start:end])]


class _Kept:
    """Values [B, M, K] of masked positions [B, M] (ascending), for later steps that have fewer of them left."""

    def __init__(self) -> None:
        self.masked, self.values = torch.empty(0), torch.empty(0)

    def keep(self, masked: Tensor, values: Tensor) -> None:
        self.masked, self.values = masked, values

    def at(self, masked: Tensor) -> Tensor:
        if masked is self.masked:
            return self.values
        images, before = self.masked.shape
        first = before * torch.arange(images, device=masked.device)[:, None]
        rows = torch.searchsorted(self.masked, masked) + first
        return self.values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


class _Exact:
    """Logits of masked positions by whole forward passes; called like `ReusingEvaluator`."""

    def __init__(
        self, model: MageTransformer, representations: Tensor | None, class_labels: Tensor | None, batch_size: int
    ) -> None:
        self.model, self.condition = model, (representations, class_labels)

    def __call__(self, ids: Tensor, masked: Tensor, refresh: bool) -> Tensor:
        logits = in_blocks(self.model, BLOCK_TOKENS // self.model.num_tokens, ids, *self.condition)
        return logits.gather(1, masked[..., None].expand(-1, -1, logits.shape[-1]))


def _grid(ids: Tensor) -> Tensor:
    side = math.isqrt(ids.shape[1])
    return ids.reshape(len(ids), side, side)
