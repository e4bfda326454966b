"""The recipe at a size that a test can run, and made-up looks and rates for plans."""

from __future__ import annotations

import dataclasses

from rcg.encoders.shape import EncoderShape
from rcg.image_gen.pixel_dit.recipe import PixelDiTRecipe
from rcg.rdm.flow.recipe import FlowRecipe
from rcg.recipe.look import Look
from rcg.recipe.rates import Rates
from rcg.recipe.settings import GeneratorSize, Settings, default_settings


def tiny_settings(**changes: object) -> Settings:
    """Everything as small as it can be; stages begin and end quickly, and few steps are enough."""
    shape = {"arch": "vit", "width": 32, "depth": 1, "heads": 2, "patch_size": 8, "image_size": 16}
    tiny = dataclasses.replace(
        default_settings(),
        generators=(GeneratorSize("tiny", PixelDiTRecipe(width=32, depth=1, num_heads=2), 2e-3, 0),),
        rdm_recipe=FlowRecipe(width=32, depth=2, context_dim=8),
        encoder_shape=EncoderShape(**shape, representation_dim=16, head_hidden_dim=32),  # type: ignore[arg-type]
        held_out=8,
        image_sizes=(16,),
        least={"encoder": 4, "rdm": 4, "generator": 8},
        looks={"encoder": 1, "rdm": 1, "generator": 2},
        scales=(1.0, 2.0),
        image_counts=(16, 8),
        overhead=0.05,
    )
    for name in ("generator", "rdm", "encoder"):
        tiny = dataclasses.replace(tiny, **{name: getattr(tiny, name) | {"batch_size": 8, "precision": "fp32"}})  # type: ignore[arg-type]
    return dataclasses.replace(tiny, **changes)  # type: ignore[arg-type]


class Ticks:
    """A clock that goes on by a hundredth of a second each time that it is looked at: the same on every machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def look(**changes: object) -> Look:
    """Fifty thousand small square images."""
    seen: Look = {
        "name": "photos",
        "fingerprint": "f",
        "count": 50_000,
        "broken": 0,
        "examples": [],
        "short_side": (32, 32, 32),
        "square": 1.0,
        "classes": 0,
        "smallest_class": 0,
        "compared": 5000,
        "repeated": 0,
        "decode": 2e-4,
    }
    return seen | changes  # type: ignore[operator, return-value]


def rates(**changes: object) -> Rates:
    """About those of two CPU cores."""
    measured: Rates = {
        "encode": 1e-3,
        "encoder": {"step": 0.6, "look": 3.0},
        "rdm": {"step": 0.08, "look": 1.5},
        "generators": {"small@32": {"step": 0.25, "look": 1.5, "draw": 0.02}},
        "score": 0.01,
    }
    return measured | changes  # type: ignore[operator, return-value]
