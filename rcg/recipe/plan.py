"""From what was seen and measured, and a budget, to a plan: sizes, steps, seconds. Pure arithmetic, nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypedDict

from rcg.core.durations import as_flag, in_words
from rcg.core.errors import UserError
from rcg.core.schema import Count, CountOrZero, NonNegative, Size
from rcg.core.shipped import DEFAULT
from rcg.recipe.look import FEW_IMAGES, Look
from rcg.recipe.rates import ELASTIC, Cost, Rates, costs_of, held_out_count, speed_of
from rcg.recipe.settings import GeneratorSize, Settings

LARGE_PASSES, LARGE_IMAGES, LARGE_LEAST = 20, 500_000, 200_000
"""Larger pictures are worth it if the generator sees so many passes or images, but not with fewer than the last number."""
ENOUGH_PASSES = 100
"""Over the same images; more of them teach a generator little but these by heart."""


class StagePlan(TypedDict):
    """A stage: training steps (or images), and the seconds that they should take."""

    name: str
    amount: CountOrZero
    seconds: NonNegative


class Plan(TypedDict):
    """What is to be done.

    Attributes:
        image_size: side in pixels.
        generator: name of its size.
        training_images, reference: images that are trained on, and held-out ones that are scored against.
        images: to be drawn in the end.
        stages: in their order.
        why: sentences on what was chosen, with the figures of the first plan.
    """

    image_size: Size
    generator: str
    training_images: Count
    reference: Count
    images: Count
    stages: list[StagePlan]
    why: list[str]


def seconds_of(plan: Plan, todo: Collection[str] | None = None) -> float:
    """Expected seconds of the stages in `todo`, or of all."""
    return sum(stage["seconds"] for stage in plan["stages"] if todo is None or stage["name"] in todo)


def amount_of(plan: Plan, name: str) -> int:
    """Steps or images of a stage; 0 if it is left out."""
    return next((stage["amount"] for stage in plan["stages"] if stage["name"] == name), 0)


def seen_by(plan: Plan, settings: Settings) -> int:
    """Images that the generator sees, passes counted in."""
    return amount_of(plan, "generator") * settings.batch_size


class Draft:
    """A plan for one generator at one size of the images, whose length is still open.

    Args:
        look, rates, settings: of this run.
        image_size, size: of images and generator.
        images: to be drawn in the end.
    """

    def __init__(
        self, look: Look, rates: Rates, settings: Settings, image_size: int, size: GeneratorSize, images: int
    ) -> None:
        self.look, self.settings, self.image_size, self.size, self.images = look, settings, image_size, size, images
        self.reference = min(held_out_count(look), 2 * images)
        self.training_images = look["count"] - held_out_count(look)
        speed = speed_of(rates, settings, size, image_size)
        self.costs = costs_of(look, rates, settings, speed, self.reference)
        self.fixed = tail_amounts(images, settings) | {"cache": self.training_images, "page": 0}

    @property
    def tail_seconds(self) -> float:
        """Of guidance, images and score."""
        return sum(self.costs[name].seconds(self.fixed[name]) for name in ("guidance", "images", "score"))

    def amounts(self, seconds: float) -> dict[str, int]:
        """Steps or images of each stage, if all is to take `seconds`; see `share_out`."""
        return share_out(seconds, self.costs, self.fixed, self.settings)

    def fits(self, seconds: float) -> bool:
        """Whether the time suffices, with the fewest steps that make sense in each stage at least."""
        return self.least_seconds() <= seconds

    def least_seconds(self) -> float:
        """What all takes with the fewest steps that make sense."""
        amounts = self.fixed | self.settings.least
        return sum(cost.seconds(amounts[name]) for name, cost in self.costs.items())

    def seconds_to_see(self, images: int) -> float:
        """The time in which the generator sees so many images, where all stages get their shares."""
        share = shares_among(self.costs, self.settings)["generator"]
        fixed = sum(cost.seconds(self.fixed.get(name, 0)) for name, cost in self.costs.items())
        return fixed + images / self.settings.batch_size * self.costs["generator"].each / share

    def plan(self, seconds: float, why: list[str]) -> Plan:
        """The plan for this time."""
        return {
            "image_size": self.image_size,
            "generator": self.size.name,
            "training_images": self.training_images,
            "reference": self.reference,
            "images": self.images,
            "stages": stage_plans(self.amounts(seconds), self.costs),
            "why": why,
        }


def tail_amounts(images: int, settings: Settings) -> dict[str, int]:
    """Images for each scale of guidance, images to draw beside these, and images to score.

    The images that a scale is judged by are the first of those that are drawn in the end, so they are not drawn again.
    """
    for_each_scale = min(images, max(images // 4, settings.image_counts[-1]))
    return {"guidance": for_each_scale, "images": images - for_each_scale, "score": images}


def shares_among(stages: Collection[str], settings: Settings) -> dict[str, float]:
    """The share of the training time of each elastic stage among `stages`; together 1."""
    rest = 1 - sum(share for name, share in settings.shares.items() if name in stages)
    shares = {name: settings.shares.get(name, rest) for name in ELASTIC if name in stages}
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def share_out(
    seconds: float, costs: Mapping[str, Cost], fixed: Mapping[str, int], settings: Settings
) -> dict[str, int]:
    """Steps or images of each stage in `costs`, if all of them are to take `seconds`.

    Training stages have their shares of what the others leave. One that would get fewer steps than make sense gets
    these, and the rest share what is then left; where nothing is left, all get the fewest that make sense.

    Args:
        seconds: for all stages.
        costs: of the stages that are to be done, in their order.
        fixed: images of the stages that have an amount of work.
        settings: of the recipe.
    """
    training = seconds - sum(cost.seconds(fixed.get(name, 0)) for name, cost in costs.items())
    steps: dict[str, int] = {}
    free = [name for name in ELASTIC if name in costs]
    while free:
        shares = shares_among(free, settings)
        given = {name: math.floor(training * shares[name] / costs[name].each) for name in free}
        short = [name for name in free if given[name] < settings.least[name]]
        steps |= given | {name: settings.least[name] for name in short}
        training -= sum(settings.least[name] * costs[name].each for name in short)
        free = [name for name in free if name not in short] if short else []
    return {name: steps.get(name, fixed.get(name, 0)) for name in costs}


def stage_plans(amounts: Mapping[str, int], costs: Mapping[str, Cost]) -> list[StagePlan]:
    """The stages with their expected seconds."""
    return [{"name": n, "amount": a, "seconds": costs[n].seconds(a)} for n, a in amounts.items()]


def make_plan(
    look: Look, rates: Rates, settings: Settings, seconds: float, *, spent: float = 0.0, image_size: int | None = None
) -> Plan:
    """The plan for a budget.

    Pictures are 64 px rather than 32 if they are that large and the generator sees enough of them in the time; the
    generator is the largest that sees as many images as its size asks for; encoder and RDM have their shares of the
    time for training; drawing and scoring have at most about an eighth of the whole.

    Args:
        look, rates, settings: of this run.
        seconds: from now on.
        spent: of the budget already; counts in what is said of too short a one only.
        image_size: in pixels, if it is asked for.

    Raises:
        UserError: the time is too short for anything.
    """
    usable = seconds * (1 - settings.margin)
    sides = _sides(look, settings) if image_size is None else (image_size,)
    why: list[str] = []
    for side in reversed(sides):
        draft = _best(look, rates, settings, usable, side)
        if draft is None:
            continue
        seen = draft.amounts(usable)["generator"] * settings.batch_size
        passes = seen / draft.training_images
        if side == sides[0]:
            break
        needed = _needed(draft.training_images)
        if seen >= needed:
            why.append(f"{side} px, because the pictures are that large and the generator sees {seen:,} of them.")
            break
        why.append(
            f"{sides[0]} px, because at {side} px the generator would see only {seen:,} images in this time "
            f"({passes:.1f} passes), fewer than the {needed:,} that it needs there."
        )
    if draft is None:
        least = least_seconds(look, rates, settings, image_size) / (1 - settings.margin) + spent
        raise UserError(
            f"a budget of {in_words(seconds + spent)} is too short for {look['count']:,} images on this machine; give "
            f"--budget {as_flag(1.05 * least)} or more."
        )
    if sides == (settings.image_sizes[0],) and image_size is None and len(settings.image_sizes) > 1:
        why.append(
            f"{draft.image_size} px, because many of the pictures are smaller than {settings.image_sizes[1]} px."
        )
    why.append(
        f"The generator is of size {draft.size.name}, which sees {seen:,} images ({passes:.1f} passes): "
        f"{expectation(seen, look['count'])}."
    )
    proposed = propose_seconds(look, rates, settings, image_size)
    if passes > ENOUGH_PASSES and seconds + spent > 1.2 * proposed:
        why.append(
            f"Warning: more than {ENOUGH_PASSES} passes over the same images teach a generator little but these by heart; "
            f"--budget {as_flag(proposed)} is what so few are worth."
        )
    if (draft.size.name, draft.image_size) == settings.start:
        why.append(f"It begins with the weights in the box ({DEFAULT}); --new-generator would begin with new ones.")
    return draft.plan(usable, why)


def expectation(seen: int, images: int) -> str:
    """What pictures a generator of small images makes that has seen so many, passes over so many images, in words."""
    if images < FEW_IMAGES:
        return "expect poor pictures or near-copies of yours, as so few are learnt by heart"
    if seen < 60_000:
        return "expect colours and layouts, hardly any object"
    if seen < 250_000:
        return "expect outlines, and now and then an object that can be recognised"
    if seen < 1_500_000:
        return "expect objects about half of which can be recognised"
    return "expect mostly recognisable objects where there are many different images"


def least_seconds(look: Look, rates: Rates, settings: Settings, image_size: int | None = None) -> float:
    """The shortest time, without any margin, in which every stage gets what it needs at least."""
    sides = _sides(look, settings) if image_size is None else (image_size,)
    drafts = (Draft(look, rates, settings, s, g, settings.image_counts[-1]) for s in sides for g in settings.generators)
    return min(draft.least_seconds() for draft in drafts)


def wanted_images(look: Look, settings: Settings) -> int:
    """Images that the generator sees in a proposed time, passes counted in: of few, fewer, but its least steps."""
    passes = ENOUGH_PASSES * (look["count"] - held_out_count(look))
    return max(settings.least["generator"] * settings.batch_size, min(settings.wanted_images, passes))


def propose_seconds(look: Look, rates: Rates, settings: Settings, image_size: int | None = None) -> float:
    """A time that is worth its while: a generator of the second size, or a smaller one, sees the images of `wanted_images`
    at the smaller size, and drawing has its share at most.

    Returns:
        seconds, all included, rounded up to whole minutes (above an hour: to quarters of an hour).
    """
    side, wanted = image_size or settings.image_sizes[0], wanted_images(look, settings)
    size = next(size for size in reversed(settings.generators[:2]) if _enough(wanted, settings, size, side))
    for images in settings.image_counts:
        draft = Draft(look, rates, settings, side, size, images)
        seconds = max(draft.seconds_to_see(wanted), draft.least_seconds())
        if draft.tail_seconds <= settings.tail * seconds:
            break
    seconds /= 1 - settings.margin
    unit = 60 if seconds < 3600 else 900
    return float(math.ceil(seconds / unit) * unit)


def _sides(look: Look, settings: Settings) -> tuple[int, ...]:
    """The sizes in pixels for which nine tenths of the pictures are large enough, the smallest in any case."""
    return tuple(s for i, s in enumerate(settings.image_sizes) if i == 0 or look["short_side"][0] >= s)


def _needed(training_images: int) -> int:
    return max(LARGE_LEAST, min(LARGE_PASSES * training_images, LARGE_IMAGES))


def _best(look: Look, rates: Rates, settings: Settings, seconds: float, side: int) -> Draft | None:
    """The draft of the largest generator that sees the images which its size asks for; None if not even one fits."""
    for size in reversed(settings.generators):
        draft = _with_tail(look, rates, settings, seconds, side, size)
        seen = draft.amounts(seconds)["generator"] * settings.batch_size
        if draft.fits(seconds) and _enough(seen, settings, size, side):
            return draft
    return None


def _enough(seen: int, settings: Settings, size: GeneratorSize, side: int) -> bool:
    """Whether a generator that sees so many images may be of this size."""
    return seen >= size.images or size is settings.generators[0] or (size.name, side) == settings.start


def _with_tail(look: Look, rates: Rates, settings: Settings, seconds: float, side: int, size: GeneratorSize) -> Draft:
    """The draft that draws as many images as its share of the time, and all else, allow; the fewest in any case."""
    for images in settings.image_counts:
        draft = Draft(look, rates, settings, side, size, images)
        if draft.tail_seconds <= settings.tail * seconds and draft.fits(seconds):
            break
    return draft
