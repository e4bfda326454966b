"""How quick this machine is at each stage, and what a stage therefore costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from rcg.core.schema import NonNegative, Positive
from rcg.recipe.look import Look
from rcg.recipe.settings import GeneratorSize, Settings

STAGES = ("encoder", "cache", "rdm", "generator", "guidance", "images", "score", "page")
"""In their order; a given encoder needs no training, so that its stage is left out."""
ELASTIC = ("encoder", "rdm", "generator")
"""Stages that take as long as one lets them; the others have an amount of work."""
MOST_HELD_OUT, HELD_OUT_SHARE = 5000, 0.1
"""Images that nothing is trained on: at most so many, and at most such a share of all."""
PAGE_SECONDS = 1.0


class Speed(TypedDict):
    """Seconds of a training step, and of one evaluation with its picture."""

    step: Positive
    look: NonNegative


class GeneratorSpeed(Speed):
    """And of drawing an image with guidance."""

    draw: Positive


class Rates(TypedDict):
    """What was measured.

    Attributes:
        encode: seconds for the representation of a view.
        encoder: training it; None for a given one.
        rdm: training it.
        generators: training and drawing, by `key`.
        score: seconds for an image's features.
    """

    encode: NonNegative
    encoder: Speed | None
    rdm: Speed
    generators: dict[str, GeneratorSpeed]
    score: NonNegative


def key(size: GeneratorSize, image_size: int) -> str:
    """What a generator's rates are filed under."""
    return f"{size.name}@{image_size}"


def speed_of(rates: Rates, settings: Settings, size: GeneratorSize, image_size: int) -> GeneratorSpeed:
    """The rates of a generator: as measured, or in proportion to its work from the measured one that is most like it."""
    if (measured := rates["generators"].get(key(size, image_size))) is not None:
        return measured
    work = size.work(image_size)

    def ratio(name: str) -> float:
        known, _, side = name.partition("@")
        return work / settings.size(known).work(int(side))

    name = min(rates["generators"], key=lambda n: abs(ratio(n) - 1) if ratio(n) > 1 else abs(1 / ratio(n) - 1))
    found, factor = rates["generators"][name], ratio(name)
    return {"step": found["step"] * factor, "look": found["look"] * factor, "draw": found["draw"] * factor}


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage: a fixed part, and each step or image."""

    fixed: float
    each: float

    def seconds(self, amount: int) -> float:
        """Of so many steps or images."""
        return self.fixed + self.each * amount


def held_out_count(look: Look) -> int:
    """Images that are kept out of all training."""
    return min(MOST_HELD_OUT, int(look["count"] * HELD_OUT_SHARE))


def costs_of(look: Look, rates: Rates, settings: Settings, speed: GeneratorSpeed, reference: int) -> dict[str, Cost]:
    """What each stage costs.

    Args:
        look, rates, settings: of this run.
        speed: of the generator that is to be trained.
        reference: held-out images that are scored against.
    """
    count, overhead = look["count"] - held_out_count(look), settings.overhead
    each_scale = [speed["draw"] / (2 if scale == 1.0 else 1) for scale in settings.scales]

    def training(name: str, speed: Speed) -> Cost:
        starts = 1 + len(settings.reviews[name])
        return Cost(overhead * starts + settings.looks[name] * speed["look"], speed["step"])

    costs = {
        "cache": Cost(overhead + reference * look["decode"], look["decode"] + settings.views * rates["encode"]),
        "rdm": training("rdm", rates["rdm"]),
        "generator": training("generator", speed),
        "guidance": Cost(
            2 * overhead + reference * rates["score"], sum(each_scale) + len(settings.scales) * rates["score"]
        ),
        "images": Cost(overhead, speed["draw"]),
        "score": Cost(overhead, rates["score"]),
        "page": Cost(PAGE_SECONDS, 0.0),
    }
    if (encoder := rates["encoder"]) is not None:
        found = training("encoder", encoder)
        costs["encoder"] = Cost(found.fixed + count * look["decode"], found.each)
    return {name: costs[name] for name in STAGES if name in costs}
